"""The Bradley–Terry fit and Wilson's interval."""

import numpy as np
import pytest

from meal_jax.reward_training import bradley_terry


def planted(pairs, width=6, noise=0.5, seed=0):
    """Features whose order is decided by a direction, up to logistic noise; and the direction."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=width)
    x = rng.normal(size=(pairs, 2, width))
    swap = (x[:, 0] - x[:, 1]) @ direction + noise * rng.logistic(size=pairs) < 0
    x[swap] = x[swap][:, ::-1]
    return x, direction


def test_the_fit_is_the_minimum():
    x, _ = planted(200)
    d, l2 = x[:, 0] - x[:, 1], 0.03
    w = bradley_terry.fit(d, l2)

    def loss(w):
        return np.mean(np.log1p(np.exp(-d @ w))) + l2 / 2 * w @ w

    rng = np.random.default_rng(1)
    assert all(loss(w + 1e-3 * rng.normal(size=w.shape)) > loss(w) for _ in range(50))


def test_the_fit_recovers_the_planted_direction_and_scale():
    x, direction = planted(20_000, noise=1.0)
    np.testing.assert_allclose(bradley_terry.fit(x[:, 0] - x[:, 1], 1e-6), direction, atol=0.1)


def test_separable_pairs_have_a_finite_fit():
    w = bradley_terry.fit(np.array([[1.0, 0.0], [2.0, 0.0]]), 1e-3)
    assert np.isfinite(w).all() and w[0] > 1 and w[1] == 0


@pytest.mark.parametrize(
    "right, total, low, high", [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval(right, total, low, high):
    np.testing.assert_allclose(bradley_terry.wilson(right, total), (low, high), atol=2e-4)  # published examples
