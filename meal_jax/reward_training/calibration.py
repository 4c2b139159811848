"""Calibration of a reward model's log-odds: the temperature, the expected calibration error, the figure.

Letters: M pairs.

A margin is score(chosen) − score(rejected); under Bradley–Terry the chosen response wins with probability σ(margin / T).
Temperature scaling and the error in bins: Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from meal_jax.pareto.figures import COLOURS, DPI, GREY
from meal_jax.reward_training.bradley_terry import fit, wilson

FOLDS = 5
BINS = np.linspace(0.5, 1.0, 11)  # of the confidence, which is at least a half


class Bin(NamedTuple):
    """Pairs of similar confidence: the bin's edges, number of pairs, mean confidence, and share in the right order."""

    low: float
    high: float
    pairs: int
    confidence: float
    right: float


def temperature(margins: np.ndarray) -> float:
    """The T > 0 of maximum likelihood for margins [M]; inf if most margins have the wrong sign.

    If all pairs are in the right order, no T is best; a weak penalty on 1 / T keeps it finite.
    """
    spread = max(float(np.sqrt(np.mean(np.square(margins, dtype=np.float64)))), 1e-12)
    inverse = fit(np.asarray(margins)[:, None] / spread, 1e-6)[0] / spread
    return float(1 / inverse) if inverse > 0 else float("inf")


def cross_fitted(margins: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Probability [M] that the chosen response wins, each under a temperature fitted without its group.

    There must be at least two groups; in sorted order they are dealt to FOLDS folds.
    """
    fold = np.unique(np.asarray(groups), return_inverse=True)[1] % FOLDS
    out = np.empty(len(margins))
    for f in np.unique(fold):
        out[fold == f] = probability(margins[fold == f], temperature(margins[fold != f]))
    return out


def probability(margins: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """σ(margin / T), [M]."""
    return 0.5 * (1 + np.tanh(np.asarray(margins, np.float64) / temperature / 2))


def reliability(chosen_wins: np.ndarray) -> list[Bin]:
    """The non-empty bins of confidence, max(p, 1 − p); p [M] is the probability of the chosen response."""
    confidence = np.maximum(chosen_wins, 1 - chosen_wins)
    right = (chosen_wins > 0.5) + 0.5 * (chosen_wins == 0.5)
    index = np.clip(np.digitize(confidence, BINS) - 1, 0, len(BINS) - 2)
    return [
        Bin(
            float(BINS[i]),
            float(BINS[i + 1]),
            int((index == i).sum()),
            float(confidence[index == i].mean()),
            float(right[index == i].mean()),
        )
        for i in np.unique(index)
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean |confidence − share right| of the bins, weighted by their pairs."""
    return sum(b.pairs * abs(b.confidence - b.right) for b in bins) / sum(b.pairs for b in bins)


def draw(path: str | os.PathLike, curves: dict[str, Sequence[Bin]]) -> None:
    """Writes a reliability diagram, one curve per label, with 95 % intervals; the suffix of `path` gives the format."""
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=1, linestyle=":", label="calibrated")
    for (label, bins), colour, marker in zip(curves.items(), COLOURS, "os", strict=False):
        x, y = np.array([b.confidence for b in bins]), np.array([b.right for b in bins])
        low, high = np.array([wilson(b.right * b.pairs, b.pairs) for b in bins]).T
        bars = np.maximum([y - low, high - y], 0)
        axes.errorbar(
            x, y, yerr=bars, color=colour, marker=marker, markersize=4, linewidth=1, elinewidth=0.6, label=label
        )
    axes.set(xlabel="confidence", ylabel="share of pairs in the right order", xlim=(0.48, 1.02), ylim=(-0.02, 1.02))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
