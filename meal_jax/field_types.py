"""What kind of value each field of a run's configuration holds; `config.check` asks before it computes with any.

ml_collections lets every field be None, a tuple hold anything, and a truth value be a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

KINDS: dict[type, str] = {
    str: "a text", bool: "True or False", int: "a whole number", float: "a number", tuple: "a tuple",
}  # fmt: skip
# What the fields of several values hold; None where `config.check` says more about them.
ITEMS: dict[str, type | None] = {
    "compare_with": str, "objectives": None, "meal.gap": float, "sampling.compact": float, "eval.reference": float,
    "profile_steps": int, "data.buckets": int, "data.stop": str, "data.template_options": str, "reward.sources": str,
}  # fmt: skip
SEVERAL = {str: "texts, such as ('a', 'b')", int: "whole numbers, such as (1, 2)", float: "numbers, such as (0.5, 1.0)"}


def check_types(config: config_dict.ConfigDict, default: config_dict.ConfigDict) -> None:
    """Refuses a field that is missing or of another kind than its default; which numbers will do, `limits` says.

    Raises:
      ValueError: names the field, its value and what would do.
    """
    for name, field in _fields(default):
        kind, optional = _kind(field)
        try:
            value = _value(config, name)
        except (KeyError, TypeError):
            raise ValueError(
                f"The configuration has no field config.{name}: let get_config begin with meal_jax.config.default()."
            ) from None
        if value is None and optional:
            continue
        or_none = ", or None" * optional
        if not _is(value, kind):
            raise ValueError(
                f"config.{name}={value!r} must be {KINDS[kind]}{or_none}; the default is {_plain(field)!r}."
            )
        if value == "None" and _plain(field) == "":  # of the command line, or of a file that quotes it
            none = "None without quotes" if optional else f"an empty text, --config.{name}=, for none"
            raise ValueError(f"config.{name}='None' is a text of four letters: give {none}.")
        items = ITEMS[name] if kind is tuple else None
        if items is not None and not all(_is(item, items) for item in value):
            raise ValueError(f"config.{name}={value!r} must be () or {SEVERAL[items]}{or_none}.")


def need_pattern(field: str, pattern: str) -> None:
    """Refuses a text that is no regular expression.

    Raises:
      ValueError: names the field, the text and the place in it.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{field}={pattern!r} is not a regular expression: {error}. It is searched in the paths of layers, such as "
            "layers/attention/q: 'attention/(q|v)$' finds two of each."
        ) from None


def _fields(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The whole name of each field, and its value or, where it may be None, its reference."""
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, config_dict.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _kind(field: Any) -> tuple[type, bool]:
    """The type of a field's values, and whether it may be None."""
    optional = isinstance(field, config_dict.FieldReference)
    return (field.get_type() if optional else type(field)), optional


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, Mapping | config_dict.ConfigDict):
            raise TypeError(name)
        config = config[part]
    return config


def _plain(field: Any) -> Any:
    return field.get() if isinstance(field, config_dict.FieldReference) else field


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; True and False are no numbers, and a whole number is a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
