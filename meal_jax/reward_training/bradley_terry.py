"""The Bradley–Terry model of pairs: its linear fit, and how many held-out pairs a score puts in the right order.

Letters: M pairs, F features.

A margin is score(chosen) − score(rejected); the model gives the chosen response the probability σ(margin).
"""

from __future__ import annotations

import numpy as np

Z95 = 1.959963984540054


def fit(d: np.ndarray, l2: float, steps: int = 30) -> np.ndarray:
    """Minimises mean log(1 + exp(-d w)) + l2/2 |w|² by Newton's method with halved steps.

    Args:
      d: [M, F], features of the chosen answer minus those of the rejected one.
      l2: above 0, else separable pairs have no minimum.
      steps: max number.

    Returns:
      w [F], float64.
    """
    d = d.astype(np.float64)

    def loss(w):
        return np.mean(np.logaddexp(0.0, -d @ w)) + l2 / 2 * (w @ w)

    w = np.zeros(d.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(np.clip(d @ w, -500, 500)))  # probability of the wrong order
        gradient = -d.T @ p / len(d) + l2 * w
        if np.linalg.norm(gradient) < 1e-8:
            break
        hessian = (d * (p * (1 - p))[:, None]).T @ d / len(d) + l2 * np.eye(len(w))
        direction, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-6 and loss(w - size * direction) > loss(w) - 1e-4 * size * (gradient @ direction):
            size /= 2
        w = w - size * direction
    return w


def accuracy(margins: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Share of pairs in the right order, a tie counting half, and its 95 % interval; margins [M]."""
    right = float(np.sum(margins > 0) + 0.5 * np.sum(margins == 0))
    return right / len(margins), wilson(right, len(margins))


def wilson(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson's, which stays inside [0, 1])."""
    share, n = right / total, total
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return float(centre - half), float(centre + half)
