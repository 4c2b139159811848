"""Methods compared seed by seed: the same seed has the same prompts and initial weights, so differences are paired.

Letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

MIN_SEEDS = 6  # with fewer the two-sided signed-rank test cannot fall below 0.05: 2 / 2⁵ = 0.0625


class Difference(NamedTuple):
    """One method's measure minus another's, over S seeds.

    Attributes:
      mean: of the differences.
      low, high: 95 % interval of the mean, over resampled seeds.
      p: two-sided Wilcoxon signed-rank test, exact where no differences tie; 1 where all are 0.
      adjusted: p after Holm's correction for the comparisons made together.
      detectable: the mean difference that a t test of as many seeds would find in four of five tries at the 5 % level.
      wins: seeds in which the first method has more.
    """

    mean: float
    low: float
    high: float
    p: float
    adjusted: float
    detectable: float
    wins: int


def compare(
    first: Sequence[float], others: Mapping[str, Sequence[float]], draws: int = 10_000
) -> dict[str, Difference]:
    """The first method against each of the others.

    Args:
      first: a measure, by seed [S].
      others: the same measure of other methods, in the same seeds.
      draws: resamples of the seeds.

    Returns:
      `Difference`s by name; their p values are adjusted together.
    """
    result = {
        name: difference(np.asarray(first, float) - np.asarray(values, float), draws) for name, values in others.items()
    }
    adjusted = holm([d.p for d in result.values()])
    return {name: d._replace(adjusted=p) for (name, d), p in zip(result.items(), adjusted, strict=True)}


def difference(values: np.ndarray, draws: int = 10_000) -> Difference:
    """What S paired differences say; `adjusted` is p."""
    seeds = len(values)
    means = values[np.random.default_rng(0).integers(0, seeds, (draws, seeds))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = float(stats.wilcoxon(values).pvalue) if np.any(values) else 1.0
    return Difference(float(values.mean()), float(low), float(high), p, p, detectable(values), int(np.sum(values > 0)))


def detectable(values: np.ndarray, level: float = 0.05, power: float = 0.8) -> float:
    """The mean difference that a paired t test finds with this power, given how the differences vary; NaN for one seed."""
    seeds = len(values)
    if seeds < 2:
        return float("nan")
    quantiles = stats.t.ppf([1 - level / 2, power], seeds - 1)
    return float(np.sum(quantiles) * np.std(values, ddof=1) / np.sqrt(seeds))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for being tested together (Holm 1979): the smallest times their number, the next times one less …"""
    order, adjusted, largest = np.argsort(p), np.zeros(len(p)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def verdict(label: str, other: str, measure: str, d: Difference, seeds: int) -> str:
    """One sentence for people."""
    interval = f"{d.mean:+.3f} ({d.low:+.3f} … {d.high:+.3f})"
    figures = f"{interval}, ahead in {d.wins} of {seeds} seeds, adjusted p = {d.adjusted:.2g}"
    if seeds < MIN_SEEDS:
        return f"{label} against {other} in {measure}: {figures}; too few seeds for the test."
    if d.adjusted < 0.05:
        return f"{label} is {'ahead of' if d.mean > 0 else 'behind'} {other} in {measure}: {figures}."
    return f"{label} and {other} are not told apart in {measure}: {figures}; {d.detectable:.3f} could have been found."
