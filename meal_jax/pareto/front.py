"""Measures of a front, and grids of preferences. Every objective is maximised. NumPy, on the host.

Letters: M points (one per preference), K objectives, E evaluation prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import moocore
import numpy as np


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume that the points dominate above the reference point.

    Args:
      points: [M, K]; M = 0 has volume 0. A point that does not exceed the reference in every objective adds nothing.
      reference: [K]. Hypervolumes can be compared only if they have the same reference.

    Returns:
      The volume, in the product of the objectives' units.
    """
    points, reference = _matrix(points, "points"), np.asarray(reference, np.float64)
    if reference.shape != points.shape[1:]:
        raise ValueError(f"The reference has shape {reference.shape}; points {points.shape} need {points.shape[1:]}.")
    return float(moocore.hypervolume(points, ref=reference, maximise=True)) if len(points) else 0.0


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Mask [M] of the points [M, K] that no other point matches in all objectives and beats in one; equal points both stay."""
    return moocore.is_nondominated(_matrix(points, "points"), maximise=True, keep_weakly=True)


def mean_inner_product(points: np.ndarray, preferences: np.ndarray) -> float:
    """Mean over points [M, K] of preference · point: the mean utility of users with the preferences [M, K]."""
    points, preferences = _matrix(points, "points"), _matrix(preferences, "preferences")
    if points.shape != preferences.shape:
        raise ValueError(f"points {points.shape} and preferences {preferences.shape} must pair up one to one.")
    return float(np.mean(np.sum(points * preferences, axis=1)))


def sparsity(points: np.ndarray) -> float:
    """Mean squared gap between neighbours of the front, summed over objectives: large where the front has holes.

    Σ_k Σ_i (s_k(i) − s_k(i + 1))² / (M' − 1) over the M' distinct non-dominated points, sorted for each objective (Xu et al.
    2020, PGMORL, section 3.1); 0 for fewer than two. In squared units of the rewards; smaller is denser, which a front
    collapsed to a point is too, so read it together with the hypervolume.
    """
    front = np.sort(_front(points), axis=0)
    return float(np.sum(np.diff(front, axis=0) ** 2) / (len(front) - 1)) if len(front) > 1 else 0.0


def spacing(points: np.ndarray) -> float:
    """Standard deviation of the distances (sum of absolute differences) from each distinct non-dominated point to its
    nearest neighbour (Schott 1995): 0 where the points are evenly spread; 0 too for fewer than two points."""
    front = _front(points)
    if len(front) < 2:
        return 0.0
    distance = np.abs(front[:, None] - front).sum(-1) + np.diag(np.full(len(front), np.inf))
    nearest = distance.min(axis=1)
    return float(nearest.std(ddof=1))


def monotonicity(points: np.ndarray, preferences: np.ndarray) -> np.ndarray:
    """Whether more weight on an objective gives more of it.

    Among pairs of preferences that differ in w_k, the share in which the larger weight has the larger mean reward r_k (ties
    count half). 1 means always, 0.5 is chance, also where no two differ.

    Args:
      points: [M, K].
      preferences: [M, K].

    Returns:
      [K].
    """
    weight = np.sign(preferences[:, None] - preferences)  # [M, M, K]
    reward = np.sign(points[:, None] - points)
    pairs = weight > 0
    count = np.sum(pairs, axis=(0, 1))
    return np.where(count > 0, np.sum(pairs * (1 + reward) / 2, axis=(0, 1)) / np.maximum(count, 1), 0.5)


def measures(points: np.ndarray, preferences: np.ndarray, reference: np.ndarray) -> dict[str, float | np.ndarray]:
    """Every measure, by name, of a front of points [M, K] for preferences [M, K]."""
    return {
        "hypervolume": hypervolume(points, reference),
        "mean_inner_product": mean_inner_product(points, preferences),
        "sparsity": sparsity(points),
        "spacing": spacing(points),
        "non_dominated": float(np.mean(non_dominated(points))),
        "monotonicity": monotonicity(points, preferences),
    }


def bootstrap(
    scores: np.ndarray, fn: Callable[[np.ndarray], Any], samples: int = 1000, seed: int = 0
) -> tuple[Any, Any, Any]:
    """95 % percentile interval, over the draw of prompts, of a function of the mean points.

    A prompt is drawn with all its M answers, so the answers of one prompt stay paired.

    Args:
      scores: [E, M, K], reward of each prompt under each preference.
      fn: from the mean points [M, K] to a number, an array, or a dict of these, which then share the drawn prompts; the
        identity gives an interval per point.
      samples: number of bootstrap replicates.
      seed: of the draw.

    Returns:
      (estimate, low, high), each in the form of fn's result: from all prompts, and the 2.5 % and 97.5 % quantiles.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 3 or not scores.size or not np.all(np.isfinite(scores)):
        raise ValueError(f"scores must be finite and of shape [prompts, points, objectives], got {scores.shape}.")
    prompts = len(scores)
    draws = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=samples) / prompts
    replicates = [fn(np.tensordot(weights, scores, axes=1)) for weights in draws]

    def quantile(q: float) -> Any:
        return jax.tree.map(lambda *values: np.quantile(values, q, axis=0), *replicates)

    return fn(scores.mean(axis=0)), quantile(0.025), quantile(0.975)


def grid(objectives: int, divisions: int = 10) -> np.ndarray:
    """The simplex lattice: all preferences whose entries are multiples of 1 / divisions.

    Returns:
      [M, K], M = C(divisions + K - 1, K - 1), the first objective's weight rising slowest: for K = 2 the usual eleven,
      (0, 1), (0.1, 0.9) ... (1, 0).
    """
    if objectives < 1 or divisions < 1:
        raise ValueError(f"A grid needs at least 1 objective and 1 division, got {objectives} and {divisions}.")
    # Divisions in a row and K - 1 bars among them, at places counted from 0: what lies between two bars is one objective's.
    places = divisions + objectives - 1
    bars = np.array(list(itertools.combinations(range(places), objectives - 1)), int)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, places)))
    return (np.diff(ends) - 1) / divisions


def paper_grid_3() -> np.ndarray:
    """The 13 preferences [13, 3] over three objectives of the published comparisons (RiC's, arXiv 2402.10207).

    Some of their permutations are missing, so an average over them favours some objectives; `grid(3, d)` does not.
    """
    third = 1 / 3  # published as .33; three of these do not sum to one
    return np.array(
        [
            (0.0, 0.0, 1.0),
            (0.0, 1.0, 0.0),
            (0.1, 0.1, 0.8),
            (0.1, 0.8, 0.1),
            (0.2, 0.2, 0.6),
            (0.2, 0.4, 0.4),
            (0.2, 0.6, 0.2),
            (third, third, third),
            (0.4, 0.4, 0.2),
            (0.4, 0.2, 0.4),
            (0.6, 0.2, 0.2),
            (0.8, 0.1, 0.1),
            (1.0, 0.0, 0.0),
        ]
    )


def _front(points: np.ndarray) -> np.ndarray:
    """The non-dominated points [M', K]; equal ones, of preferences that are answered alike, are one point of the front."""
    return np.unique(_matrix(points, "points")[non_dominated(points)], axis=0)


def _matrix(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.shape[1] or not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite and of shape [points, objectives]; got {values.shape}:\n{values}")
    return values
