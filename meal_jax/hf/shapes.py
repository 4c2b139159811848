"""Decoders of which only the sizes are needed: to draw weights at random in the shapes of a published model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meal_jax.hf import families, known, pretrained
from meal_jax.models.transformer import TransformerConfig

RANDOM = "random:"  # before a name below, a directory or a hub id: its shapes, random weights


def entries(source: str) -> Mapping[str, Any]:
    """config.json's entries for one of `known.DECODERS` (its last part, or a path that ends in it), a directory or a hub id.

    Raises:
      FileNotFoundError: it is neither known here nor anywhere else; lists the names.
    """
    last = Path(source).name.lower()
    for name, found in known.DECODERS.items():
        if last and name.rpartition("/")[2].lower().startswith(last):  # "SmolLM2-135M" is "SmolLM2-135M-Instruct"
            return found
    try:
        return pretrained.read_json(pretrained.resolve(source) / "config.json")
    except FileNotFoundError as error:
        names = ", ".join(known.DECODERS)
        raise FileNotFoundError(f"{RANDOM}{source}: no shapes of that name are known ({names}), and {error}") from None


def load_config(source: str, **overrides) -> TransformerConfig:
    """The decoder of those entries; `overrides` as in `pretrained.load_config`."""
    return dataclasses.replace(families.parse(entries(source), source), **overrides)
