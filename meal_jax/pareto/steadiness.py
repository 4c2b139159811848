"""How steadily a run trained, from its metrics.jsonl: what "steadier training" is taken to mean here.

The paper claims steadier training and, in the text at hand, does not define it. These definitions are ours. The series are
the policy's gradient norm ("grad_norm/policy", before clipping) and the utility ("utility", a batch's mean inner product of
training rewards and targets), by step. The first fifth of the steps, in which a policy learns most, is left out of variances.

    grad_norm_variance   variance of the gradient norm over steps
    utility_variance     variance of the utility over steps; a rise counts as well as noise
    utility_noise        half the mean squared change from one step to the next (von Neumann), in which a slow rise counts
                         little: for independent noise around a constant it equals the variance
    steps_to_90          first step by which 90 % of the rise from the first level to the last is reached, in a running mean
    lost                 share of its largest rise that the run had lost at its end: 0 at its best, 1 back where it began, more
                         below that; 1 too, a lower bound, where it never rose and ended clearly below its first level
    collapsed            1 if it lost more than half, else 0; 0 too where it never rose and did not clearly fall

Levels are running means over a twentieth of the steps: the first, the last, and the largest. One is clearly below another
if the gap is more than two standard errors, given the noise.

Letters: T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FIRST_PART = 0.2  # of the steps, left out of variances
LEVEL_PART = 0.05  # of the steps, averaged for a level
COLLAPSE = 0.5  # share of the rise that a collapsed run has lost
NAN = float("nan")


class Steadiness(NamedTuple):
    """The measures, as defined above; NaN where a series is missing or too short, or has no such rise."""

    grad_norm_variance: float
    utility_variance: float
    utility_noise: float
    steps_to_90: float
    lost: float
    collapsed: float


def measure(metrics: Sequence[Mapping[str, Any]]) -> Steadiness:
    """The steadiness of a run, from its rows in the order of their steps."""
    gradient, utility = series(metrics, "grad_norm/policy")[1], series(metrics, "utility")
    loss = lost(utility[1])
    return Steadiness(
        variance(gradient),
        variance(utility[1]),
        noise(utility[1]),
        steps_to(*utility),
        loss,
        float(loss > COLLAPSE) if len(running_mean(utility[1])) > 1 else NAN,
    )


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] and values [T] of a metric, where it was recorded."""
    pairs = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, values


def variance(values: np.ndarray) -> float:
    """Sample variance of values [T] after the first fifth."""
    later = _later(values)
    return float(np.var(later, ddof=1)) if len(later) > 1 else NAN


def noise(values: np.ndarray) -> float:
    """Half the mean squared change between neighbouring values [T] after the first fifth."""
    later = _later(values)
    return float(np.mean(np.diff(later) ** 2) / 2) if len(later) > 1 else NAN


def steps_to(steps: np.ndarray, values: np.ndarray, share: float = 0.9) -> float:
    """The first of the steps [T] by which a share of the rise is reached in the running mean of values [T]; NaN if the
    last level is not above the first."""
    levels = running_mean(values)
    if len(levels) < 2 or not levels[-1] > levels[0]:
        return NAN
    reached = levels >= levels[0] + share * (levels[-1] - levels[0])
    return float(steps[len(values) - len(levels) + int(np.argmax(reached))])  # the last step that the mean covers


def lost(values: np.ndarray) -> float:
    """Share of its largest rise that a series [T] had lost at its end, in its running mean.

    A series that never rises above its first level has no rise to lose a share of: 1 if its last level is clearly below the
    first, else NaN.
    """
    levels = running_mean(values)
    if len(levels) < 2:
        return NAN
    if not levels.max() > levels[0]:
        return 1.0 if levels[0] - levels[-1] > 2 * _level_error(values) else NAN
    return float((levels.max() - levels[-1]) / (levels.max() - levels[0]))


def _level_error(values: np.ndarray) -> float:
    """Standard error of the difference of two levels, if values [T] are levels with independent noise."""
    return float(np.sqrt(np.mean(np.diff(values) ** 2) / _level_width(values)))


def _level_width(values: np.ndarray) -> int:
    return max(1, round(LEVEL_PART * len(values)))


def running_mean(values: np.ndarray) -> np.ndarray:
    """Means of every window of a twentieth of the values [T], at least one value wide."""
    width = _level_width(values)
    return np.convolve(values, np.full(width, 1 / width), "valid") if len(values) else values


def _later(values: np.ndarray) -> np.ndarray:
    return values[int(np.ceil(FIRST_PART * len(values))) :]
