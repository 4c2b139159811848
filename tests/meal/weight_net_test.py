"""The weight-net proposes the target at first, and something of its own once trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal.weight_net import WeightNet


@pytest.mark.parametrize("k", [2, 3])
def test_it_starts_at_the_target_and_stays_on_the_simplex(k):
    net = WeightNet(hidden=16, epsilon=1e-4)
    h = jax.random.normal(jax.random.key(0), (3, 8))
    w = jax.random.dirichlet(jax.random.key(1), jnp.ones(k), (3, 5)).at[0, 0].set(jnp.eye(k)[0])
    params = net.init(jax.random.key(2), h, w)
    np.testing.assert_allclose(net.apply(params, h, w), w, atol=2e-4)
    moved = jax.tree.map(lambda x: x + 0.3, params)
    w_hat = net.apply(moved, h, w)
    np.testing.assert_allclose(w_hat.sum(-1), 1.0, rtol=1e-6)
    assert bool(jnp.all(w_hat > 0))


def test_it_reads_the_prompt_once_trained_but_does_not_train_the_policy():
    net = WeightNet(hidden=16)
    h = jax.random.normal(jax.random.key(0), (2, 8))
    w = jnp.full((2, 1, 2), 0.5)
    params = net.init(jax.random.key(2), h, w)
    shift = jax.random.normal(jax.random.key(3), params["params"]["shift"]["kernel"].shape)
    params["params"]["shift"]["kernel"] = shift
    w_hat = net.apply(params, h, w)
    assert np.abs(w_hat[0] - w_hat[1]).max() > 1e-2
    grads = jax.grad(lambda h: net.apply(params, h, w)[..., 0].sum())(h)
    np.testing.assert_array_equal(grads, 0.0)
