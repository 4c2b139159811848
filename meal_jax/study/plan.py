"""What a study consists of: variants of one configuration, questions about pairs of them, curves over several.

A file of configs/study/ starts from `default()`. This module brings no jax: it is read before the command line is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ml_collections


class Variant(NamedTuple):
    """A column of the table of runs.

    Attributes:
      name: of its folder; letters, digits, "_", "." and "-".
      label: for tables and sentences.
      method: a key of `meal_jax.methods.METHODS`.
      changes: "field=value" of the base configuration, "meal.net=False".
    """

    name: str
    label: str
    method: str = "meal"
    changes: tuple[str, ...] = ()


class Question(NamedTuple):
    """Is one variant ahead of another in a measure?

    Attributes:
      name: for --only.
      first, other: names of variants; the difference is first − other.
      measure: one of `meal_jax.study.measures.MEASURES`.
    """

    name: str
    first: str
    other: str
    measure: str


class Curve(NamedTuple):
    """Measures against a field's values.

    Attributes:
      name: for --only and the figure's file.
      field: "meal.tau", the label of the axis.
      points: (value as text, name of the variant), in the order of the axis.
    """

    name: str
    field: str
    points: tuple[tuple[str, str], ...]


def default() -> ml_collections.ConfigDict:
    """The fields of a study, every one commented."""
    c = ml_collections.ConfigDict()
    c.base = ""  # configuration file of the runs, from the current directory, with its argument: "configs/toy.py:base"
    c.seed = 0  # of the first run of each variant
    c.seeds = 10  # runs of each variant, by seed, seed + 1 …
    c.changes = ()  # "field=value" of the base configuration that all runs share, "eval.every=20"
    c.variants = ()  # Variants
    c.questions = ()  # Questions; Holm's correction is over all that are asked
    c.curves = ()  # Curves
    c.gap = ()  # (low, high): the measure gap_inner_product is of the preferences whose first weight lies between them
    c.drawn = ()  # names of the variants in the figures of fronts and of training
    return c


def check(study: ml_collections.ConfigDict) -> None:
    """Refuses a study that does not hold together.

    Raises:
      ValueError: names the entry.
    """
    names = [v.name for v in study.variants]
    for kind, entries in (
        ("variant", names),
        ("question or curve", [q.name for q in (*study.questions, *study.curves)]),
    ):
        double = sorted({name for name in entries if entries.count(name) > 1})
        if double:
            raise ValueError(f"the study has more than one {kind} of the name {', '.join(double)}.")
    bad = [n for n in names if not all(c.isalnum() or c in "_.-" for c in n) or n in ("", ".", "..", "logs")]
    if bad:
        raise ValueError(
            f"{', '.join(map(repr, bad))} cannot be a variant's name, which is that of a folder beside logs."
        )
    used = {q.name: (q.first, q.other) for q in study.questions}
    used |= {c.name: tuple(variant for _, variant in c.points) for c in study.curves} | {"drawn": study.drawn}
    for name, variants in used.items():
        unknown = [variant for variant in variants if variant not in names]
        if unknown:
            raise ValueError(f"{name} names {', '.join(unknown)}, which is not a variant: {', '.join(names)}.")
    if study.seeds < 1:
        raise ValueError(f"config.seeds={study.seeds} must be at least 1.")


def choose(study: ml_collections.ConfigDict, only: Sequence[str]) -> ml_collections.ConfigDict:
    """The study of the named questions and curves alone, with the variants that they need; all of it for no names.

    Raises:
      ValueError: an unknown name; lists those that there are.
    """
    known = [entry.name for entry in (*study.questions, *study.curves)]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}, which is no question or curve: {', '.join(known)}.")
    if not only:
        return study
    chosen = study.copy_and_resolve_references()
    chosen.questions = tuple(q for q in study.questions if q.name in only)
    chosen.curves = tuple(c for c in study.curves if c.name in only)
    needed = {variant for q in chosen.questions for variant in (q.first, q.other)}
    needed |= {variant for c in chosen.curves for _, variant in c.points}
    chosen.variants = tuple(v for v in study.variants if v.name in needed)
    chosen.drawn = tuple(name for name in study.drawn if name in needed)
    return chosen
