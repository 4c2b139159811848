"""Rewards by their pool's own spread. (The running statistics: tests of the step.)"""

import jax.numpy as jnp
import numpy as np

from meal_jax.meal.normalise import LEAST, scale_by_pool


def test_rewards_are_divided_by_their_pools_own_deviation_down_to_the_least():
    rng = np.random.default_rng(0)
    r = rng.normal(size=(3, 64, 2)) * np.array([[[2.0, 0.5]], [[1.0, 3.0]], [[1e-4, 0.0]]]) + 5.0
    scaled = np.asarray(scale_by_pool(jnp.asarray(r, jnp.float32)))
    np.testing.assert_allclose(scaled[:2].std(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(scaled[:2], r[:2] / r[:2].std(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(scaled[2], r[2] / LEAST, rtol=1e-5)
