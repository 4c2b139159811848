"""The weight-net proposes the target at first, and something of its own once trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from meal_jax import testing
from meal_jax.export import weight_net as numpy_net
from meal_jax.meal import step
from meal_jax.meal.weight_net import WeightNet, absorb_prompts


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


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)


def prompts_alike(key, count=64, width=16):
    """Features of prompts as a language model has them: two large ones that hardly differ, the rest small."""
    return jnp.zeros(width).at[:2].set((80.0, -60.0)) + jax.random.normal(key, (count, width))


def trained(net, h, w):
    """Parameters of the net with its last layer drawn, and the moments of `h`."""
    params = net.init(jax.random.key(2), h, w)["params"]
    shift = jax.random.normal(jax.random.key(3), params["shift"]["kernel"].shape)
    return absorb_prompts(params | {"shift": params["shift"] | {"kernel": shift}}, h, window=1e4)


def test_standard_features_are_in_deviations_over_prompts_and_tell_them_apart():
    h, w = prompts_alike(jax.random.key(0)), jnp.full((64, 1, 2), 0.5)
    layer, standard = WeightNet(hidden=16), WeightNet(hidden=16, features="standard")
    params = trained(standard, h, w)
    normed = layer_norm(np.asarray(h))
    np.testing.assert_allclose(params["moments"]["mean"], normed.mean(0), atol=1e-5)
    np.testing.assert_allclose(params["moments"]["var"], normed.var(0), rtol=1e-3)
    assert params["moments"]["count"] == 64
    spread = {
        net.features: np.std(net.apply({"params": trained(net, h, w)}, h, w)[..., 0]) for net in (layer, standard)
    }
    assert spread["standard"] > 5 * spread["layer"] > 0
    flat = traverse_util.flatten_dict(params, sep="/") | {"epsilon": np.float32(standard.epsilon)}
    far = h.at[0].add(100.0 * jnp.arange(16))  # a prompt of another kind: its features are cut
    expected = standard.apply({"params": params}, far, w)
    np.testing.assert_allclose(numpy_net.propose(flat, far[:, None], w), expected, atol=1e-5, rtol=0)
    grads = jax.grad(lambda p: standard.apply({"params": p}, h, w)[..., 0].sum())(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["moments"])) and grads["prompt"]["kernel"].any()


def test_an_update_counts_its_prompts_and_learns_from_those_before():
    tiny = testing.tiny(net_features="standard", hypergradient="none")
    assert float(tiny.state.net["moments"]["count"]) == 0
    respond = jax.jit(functools.partial(step.rollout, tiny.setup))
    rolled = respond(tiny.state, tiny.frozen, tiny.batch)
    state, _ = jax.jit(functools.partial(step.step, tiny.setup))(tiny.state, tiny.frozen, tiny.batch)
    want = absorb_prompts(tiny.state.net, rolled.pooled, tiny.setup.meal.stats_window)["moments"]
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6), state.net["moments"], want
    )
    assert float(state.net["moments"]["count"]) == len(tiny.batch.id)
    again = respond(state, tiny.frozen, tiny.batch)
    proposed = step.propose(tiny.setup, state.net, again.pooled, again.w)
    np.testing.assert_allclose(again.w_hat, proposed, rtol=1e-5, atol=1e-6)
