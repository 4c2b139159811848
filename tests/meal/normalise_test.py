"""Rewards by their pool's own spread. (The running statistics: tests of the step.)"""

import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal.normalise import LEAST, absorb, init_stats, normalise, scale_by_pool


def test_rewards_are_divided_by_their_pools_own_deviation_down_to_the_least():
    rng = np.random.default_rng(0)
    r = rng.normal(size=(3, 64, 2)) * np.array([[[2.0, 0.5]], [[1.0, 3.0]], [[1e-4, 0.0]]]) + 5.0
    scaled = np.asarray(scale_by_pool(jnp.asarray(r, jnp.float32)))
    np.testing.assert_allclose(scaled[:2].std(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(scaled[:2], r[:2] / r[:2].std(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(scaled[2], r[2] / LEAST, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1.0, 1e12])
def test_rewards_of_any_scale_are_normalised_alike(scale):
    """So a probability of 1e-5 weighs what its preference says."""
    draws = np.random.default_rng(0).normal(3.0, 1.0, size=(4, 50, 1))
    stats = init_stats(1)
    for rewards in draws:
        stats = absorb(stats, jnp.asarray(rewards * scale, jnp.float32), window=10_000)
    expected = (draws[-1] - draws.mean()) / draws.std()
    np.testing.assert_allclose(normalise(stats, jnp.asarray(draws[-1] * scale, jnp.float32)), expected, atol=2e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-9, 12345.67])
def test_a_reward_that_never_varies_maps_to_nothing(constant):
    stats, rewards = init_stats(1), jnp.full((50, 1), constant, jnp.float32)
    for _ in range(20):
        stats = absorb(stats, rewards, window=200)
    r = normalise(stats, rewards)
    assert float(jnp.ptp(r)) == 0.0 and float(jnp.abs(r).max()) < 0.5
