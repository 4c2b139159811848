"""What a study reads from finished runs: measures by what was spent, and how steadily they trained.

Letters: E evaluations, M preferences, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from meal_jax.json_files import read_object, read_rows
from meal_jax.limits import is_interval
from meal_jax.pareto import front, one_point, steadiness
from meal_jax.pareto.equal import BASES

# Name → label, and whether lower is better. Of an evaluation, so that they are compared at equal spending:
EVALUATED = {
    "mean_inner_product": ("inner product", False),
    "hypervolume": ("hypervolume", False),
    "share_of_true_hypervolume": ("share of the true hypervolume", False),
    "truncated": ("truncated answers", True),
    "repetitive": ("repetitive answers", True),
    "log_likelihood": ("log-likelihood per token", False),
    "distinct_2": ("distinct-2", False),
    "copied": ("tokens copied from the prompt", True),
    "gap_inner_product": ("inner product over the preferences of the gap", False),
}
# Of the whole of training (pareto/steadiness.py):
TRAINING = {
    "grad_norm_variance": ("variance of the gradient norm", True),
    "utility_variance": ("variance of utility", True),
    "utility_noise": ("noise of utility", True),
    "steps_to_90": ("steps to 90 % of the rise", True),
    "lost": ("share of the rise that was lost", True),
}
MEASURES = EVALUATED | TRAINING
# What two runs have spent alike, by the key of a run's budget. The names are those of `compare --equal`.
EQUAL = {"updates": "policy updates", "tokens": "tokens sampled"}


class Record(NamedTuple):
    """A finished run.

    Attributes:
      final: what pareto.json holds.
      budgets: what had been spent at each evaluation, [E] by the keys of a budget.
      values: of EVALUATED at each evaluation, [E]; NaN where an evaluation lacks it.
      points: of the front at each evaluation, [M, K] each.
      steadiness: of the whole of training.
    """

    final: dict[str, Any]
    budgets: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    points: list[np.ndarray]
    steadiness: steadiness.Steadiness


def read(folder: Path, gap: Sequence[float] = ()) -> Record:
    """Reads a finished run's pareto.json, evals and metrics.jsonl; `gap` is the study's.

    Raises:
      FileNotFoundError, ValueError: an evaluation of its history is not there, or a file is damaged.
    """
    final = read_object(folder / "pareto.json")
    history = final["history"]
    evaluations = one_point.read_evaluations(folder, final)
    for evaluation in (*evaluations, final):
        evaluation["gap_inner_product"] = gap_inner_product(evaluation, gap)
    budgets = {key: np.array([h["budget"][key] for h in history], float) for key in history[0]["budget"]}
    values = {name: np.array([e.get(name, np.nan) for e in evaluations], float) for name in EVALUATED}
    points = [np.array(e["points"], float) for e in evaluations]
    return Record(final, budgets, values, points, steadiness.measure(_whole(folder / "metrics.jsonl", final["step"])))


def _whole(path: Path, steps: int) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, [] with a warning where one of the steps has none: measures of a part would mislead."""
    rows = read_rows(path)
    absent = set(range(steps)) - rows.keys()
    if absent:
        logging.warning(
            "%s lacks the rows of %d of %d steps, step %d first: how steadily that run trained is not measured",
            path, len(absent), steps, min(absent),
        )  # fmt: skip
    return [] if absent else list(rows.values())


def from_one_point(records: dict[str, dict[int, Record]]) -> tuple[dict[str, dict[int, Record]], list[float] | None]:
    """The runs with all hypervolumes from one reference point, and that point; None where they have one already.

    See `pareto.one_point`. Intervals over prompts and shares of the true hypervolume are of the runs' own points and left out.
    """
    lowest = one_point.lowest(r.final for runs in records.values() for r in runs.values())
    if lowest is None:
        return records, None

    def moved(record: Record) -> Record:
        final = one_point.moved(record.final, record.points, lowest)
        volumes = np.array([h["hypervolume"] for h in final["history"]])
        shares = np.full(len(volumes), np.nan)
        return record._replace(
            final=final, values=record.values | {"hypervolume": volumes, "share_of_true_hypervolume": shares}
        )

    return {name: {seed: moved(r) for seed, r in runs.items()} for name, runs in records.items()}, lowest


def gap_inner_product(evaluation: Mapping[str, Any], gap: Sequence[float]) -> float:
    """An evaluation's mean inner product over the preferences whose first weight lies within the gap; NaN for none."""
    preferences, points = np.asarray(evaluation["preferences"]), np.asarray(evaluation["points"])
    low, high = gap or (np.inf, -np.inf)
    inside = (preferences[:, 0] > low) & (preferences[:, 0] < high)
    return front.mean_inner_product(points[inside], preferences[inside]) if inside.any() else np.nan


def pair(first: Record, other: Record, measure: str, equal: str) -> tuple[float, float]:
    """A measure of two runs when both had spent what the thriftier one spent in all.

    Between evaluations it is interpolated linearly: runs spend different amounts per step, and the next earlier evaluation
    would set the one back by up to `config.eval.every` steps. NaN before a run's first evaluation, which is not its start
    where the earlier ones were set aside. Measures of training are of the whole run.

    Raises:
      ValueError: the hypervolumes of the two are from different reference points.
    """
    if measure in TRAINING:
        return getattr(first.steadiness, measure), getattr(other.steadiness, measure)
    references = [record.final.get("reference") for record in (first, other)]
    if measure == "hypervolume" and references[0] != references[1]:
        raise ValueError(
            f"hypervolumes from {references[0]} and from {references[1]} cannot be compared (see `from_one_point`)."
        )
    spent = BASES[equal].spent
    limit = min(record.budgets[spent][-1] for record in (first, other))
    first_value, other_value = (
        float(np.interp(limit, record.budgets[spent], record.values[measure], left=np.nan)) for record in (first, other)
    )
    return first_value, other_value


def pairs(
    first: dict[int, Record], other: dict[int, Record], measure: str, equal: str
) -> dict[int, tuple[float, float]]:
    """`pair` of every seed that both have, where both values are finite."""
    both = {seed: pair(first[seed], other[seed], measure, equal) for seed in sorted(first.keys() & other.keys())}
    return {seed: values for seed, values in both.items() if np.all(np.isfinite(values))}


def steady(records: Sequence[Record]) -> dict[str, Any]:
    """One variant's seeds: medians of the measures of training, and the share of collapsed runs; of the runs that have the
    measure, None where none has."""
    out: dict[str, Any] = {}
    for key, name, average in (*((n, n, np.median) for n in TRAINING), ("collapse_rate", "collapsed", np.mean)):
        values = np.array([getattr(r.steadiness, name) for r in records], float)
        values = values[np.isfinite(values)]
        out[key] = float(average(values)) if len(values) else None
    return out


def check(study) -> None:
    """Refuses questions about measures that there are not, and a gap that is none.

    Raises:
      ValueError: names the question and lists the measures.
    """
    if study.gap and not is_interval(study.gap):
        raise ValueError(f"config.gap={study.gap} must be () or two numbers between 0 and 1, the smaller first.")
    for question in study.questions:
        if question.measure == "gap_inner_product" and not study.gap:
            raise ValueError(f"question {question.name} is about the preferences of a gap, and config.gap names none.")
        if question.measure not in MEASURES:
            raise ValueError(
                f"question {question.name} is about {question.measure!r}, which is none of {', '.join(MEASURES)}."
            )
