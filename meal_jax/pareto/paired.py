"""Methods compared seed by seed: the same seed has the same prompts and initial weights, so differences are paired.

Letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

MIN_SEEDS = 6  # with fewer the two-sided signed-rank test cannot fall below 0.05: 2 / 2⁵ = 0.0625


class Difference(NamedTuple):
    """One method's measure minus another's, over S seeds.

    Attributes:
      mean: of the differences.
      low, high: 95 % interval of the mean, over resampled seeds.
      p: two-sided Wilcoxon signed-rank test, exact where no differences tie; 1 where all are 0.
      adjusted: p after Holm's correction for the comparisons made together.
      detectable: the mean difference that a t test of as many seeds would find in four of five tries at the 5 % level; fewer
        than six find it a little less often.
      wins: seeds in which the first method has more.
      losses: seeds in which it has less.
      direction: of what the test found: 1 where the ranks of the seeds in which the first method has more sum to more, -1 to
        less, 0 to as much. The mean's sign may be another, by one seed that is far off.
      effect: Cohen's d_z, the mean of the differences in their standard deviations; NaN where they do not vary.
      effect_low, effect_high: its 95 % interval for normal differences, from the noncentral t distribution.
    """

    mean: float
    low: float
    high: float
    p: float
    adjusted: float
    detectable: float
    wins: int
    losses: int = 0
    direction: int = 0
    effect: float = float("nan")
    effect_low: float = float("nan")
    effect_high: float = float("nan")


def compare(
    first: Sequence[float], others: Mapping[str, Sequence[float]], draws: int = 10_000
) -> dict[str, Difference]:
    """The first method against each of the others.

    Args:
      first: a measure, by seed [S].
      others: the same measure of other methods, in the same seeds.
      draws: resamples for the intervals.
    """
    return family({name: (first, values) for name, values in others.items()}, draws)


def family(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], draws: int = 10_000) -> dict[str, Difference]:
    """Several comparisons that are tested together, so that Holm's correction is over all of them.

    Args:
      pairs: name → a measure of two methods, each by seed [S]; S may differ from pair to pair.
      draws: resamples for the intervals.
    """
    differences = {
        name: difference(np.asarray(first, float) - np.asarray(other, float), draws)
        for name, (first, other) in pairs.items()
    }
    adjusted = holm([d.p for d in differences.values()])
    return {name: d._replace(adjusted=p) for (name, d), p in zip(differences.items(), adjusted, strict=True)}


def difference(values: np.ndarray, draws: int = 10_000) -> Difference:
    """What S paired differences say; `adjusted` is p.

    Raises:
      ValueError: a difference is not a finite number.
    """
    _need_finite(values)
    seeds = len(values)
    means = values[np.random.default_rng(0).integers(0, seeds, (draws, seeds))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = float(stats.wilcoxon(values).pvalue) if np.any(values) else 1.0
    return Difference(
        float(values.mean()), float(low), float(high), p, p, detectable(values), int(np.sum(values > 0)),
        int(np.sum(values < 0)), direction(values), *effect_size(values),
    )  # fmt: skip


def direction(values: np.ndarray) -> int:
    """The sign of Wilcoxon's signed-rank sum of S paired differences, in which direction its p value speaks."""
    return int(np.sign(np.sum(np.sign(values) * stats.rankdata(np.abs(values)))))


def effect_size(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Cohen's d_z = mean / standard deviation of S paired differences, and its confidence interval.

    The t statistic √S d_z of normal differences follows a noncentral t distribution. Its noncentralities at which the
    observed t is either quantile of the level bound √S times the true effect.

    Returns:
      (d_z, low, high); NaN for one seed and for differences that do not vary.

    Raises:
      ValueError: a difference is not a finite number.
    """
    _need_finite(values)
    seeds, spread = len(values), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if spread <= 1e-12 * float(np.max(np.abs(values), initial=0.0)) or spread == 0:
        return (float("nan"),) * 3
    t, free = float(values.mean()) / spread * np.sqrt(seeds), seeds - 1

    def below(noncentrality: float) -> float:
        """The chance of a t statistic below |t|. At large t SciPy's is slow, and not a number in places; the mean's own
        noise is negligible there, and what varies is the standard deviation."""
        share = stats.nct.cdf(abs(t), free, noncentrality) if abs(t) < 1000 else np.nan
        return share if np.isfinite(share) else stats.chi2.sf(free * (max(noncentrality, 0.0) / abs(t)) ** 2, free)

    def bound(share: float) -> float:
        """The noncentrality at which a share of the distribution lies below |t|; the share falls as it grows."""
        width = 2.0
        while not below(abs(t) - width) > share > below(abs(t) + width):
            width *= 2
        return optimize.brentq(lambda n: below(n) - share, abs(t) - width, abs(t) + width)

    ends = [np.sign(t or 1.0) * bound(share) / np.sqrt(seeds) for share in ((1 + level) / 2, (1 - level) / 2)]
    return float(t / np.sqrt(seeds)), float(min(ends)), float(max(ends))


def _need_finite(values: np.ndarray) -> None:
    """The search for an interval would not end otherwise."""
    if not np.all(np.isfinite(values)):
        raise ValueError(f"differences must be finite numbers, not {np.asarray(values).tolist()}.")


def smallest_p(seeds: int, comparisons: int) -> float:
    """The smallest adjusted p value that these numbers allow: all differences of one sign, and Holm's first. The signed-rank
    test leaves out seeds that do not differ: they do not count."""
    return min(1.0, comparisons * 2.0 ** (1 - seeds))


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


def as_dict(d: Difference) -> dict[str, float | int | None]:
    """The fields as JSON has them: None for what is not a number."""
    return {name: value if np.isfinite(value) else None for name, value in d._asdict().items()}


def verdict(label: str, other: str, measure: str, d: Difference, seeds: int, lower_is_better: bool = False) -> str:
    """One sentence for people. "Ahead" is more of the measure, or less of one where lower is better."""
    form = "+.3g" if lower_is_better else "+.3f"  # variances are of any scale, shares and inner products near 1
    interval = f"{d.mean:{form}} ({d.low:{form}} … {d.high:{form}})"
    wins = d.losses if lower_is_better else d.wins
    figures = f"{interval}, ahead in {wins} of {seeds} seeds, adjusted p = {d.adjusted:.2g}"
    if seeds < MIN_SEEDS:
        return f"{label} against {other} in {measure}: {figures}; too few seeds for the test."
    if d.adjusted < 0.05:
        ahead = (d.direction > 0) != lower_is_better
        return f"{label} is {'ahead of' if ahead else 'behind'} {other} in {measure}: {figures}."
    return f"{label} and {other} are not told apart in {measure}: {figures}; {d.detectable:{form[1:]}} could have been found."
