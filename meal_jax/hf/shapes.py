"""Sizes of decoders: to draw random weights in the shapes of a published model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meal_jax.hf import families, known, pretrained
from meal_jax.models.transformer import TransformerConfig

RANDOM = "random:"  # prefix of a known name, a directory or a hub id: random weights in its shapes


def entries(source: str) -> Mapping[str, Any]:
    """Entries of config.json of one of `known.DECODERS` (by its last part or a path ending in it), a directory or a hub id.

    Raises:
      FileNotFoundError: it is none of these; lists the names.
    """
    last = Path(source).name.lower()
    for name, decoder in known.DECODERS.items():
        if last and name.rpartition("/")[2].lower().startswith(last):  # "SmolLM2-135M" is "SmolLM2-135M-Instruct"
            return decoder
    try:
        return pretrained.read_json(pretrained.resolve(source) / "config.json")
    except FileNotFoundError as error:
        names = ", ".join(known.DECODERS)
        raise FileNotFoundError(f"{RANDOM}{source}: no shapes of that name are known ({names}), and {error}") from None


def load_config(source: str, **overrides) -> TransformerConfig:
    """The decoder of those entries; `overrides` as in `pretrained.load_config`."""
    return dataclasses.replace(families.parse(entries(source), source), **overrides)
