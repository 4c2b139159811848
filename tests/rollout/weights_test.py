"""How a rollout holds its weights: merged is the same policy, eight bits are near it, gathered changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal import step
from meal_jax.models.lora import Lora, merge
from meal_jax.rollout.weights import RolloutWeights, for_rollout, quantize
from meal_jax.testing import tiny

LORA = Lora(2, targets="(q|v|down)$")


@pytest.fixture(scope="module")
def run():
    """A policy whose adapters do something."""
    run = tiny(adapters=LORA, net=False)
    moved = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(3), x.shape), run.state.policy)
    return run._replace(state=run.state.replace(policy=moved))


def hidden(policy, params, run):
    prompt = policy.apply({"params": params}, run.batch.tokens, run.batch.mask, method="prefill")
    return np.asarray(prompt.last)


def test_merged_is_the_same_policy_to_rounding(run):
    params = merge(run.state.policy, run.frozen.policy)
    policy, merged = for_rollout(run.setup.policy, params, RolloutWeights("merged"))
    assert policy.config.lora is None and "lora_a" not in str(jax.tree_util.tree_structure(merged))
    np.testing.assert_allclose(hidden(policy, merged, run), hidden(run.setup.policy, params, run), rtol=2e-5, atol=2e-5)


def test_eight_bits_are_within_half_a_level_and_keep_the_adapters(run):
    params = merge(run.state.policy, run.frozen.policy)
    policy, small = for_rollout(run.setup.policy, params, RolloutWeights("int8"))
    kernel, its = (p["transformer"]["layers"]["mlp"]["gate"] for p in (params, small))
    assert its["kernel"].dtype == jnp.int8 and its["kernel_scale"].shape == (2, 1, kernel["kernel"].shape[-1])
    error = jnp.abs(its["kernel"] * its["kernel_scale"] - kernel["kernel"])
    assert float(jnp.max(error / its["kernel_scale"])) <= 0.5 + 1e-5
    exact, near = hidden(run.setup.policy, params, run), hidden(policy, small, run)
    assert 0 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
    # It is that quantization and nothing else: the plain policy with the rounded kernels agrees to rounding.
    rounded = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _rounded(leaf) if "layers" in str(path) and path[-1].key == "kernel" else leaf, params
    )
    np.testing.assert_allclose(near, hidden(run.setup.policy, rounded, run), rtol=2e-5, atol=2e-5)


def _rounded(kernel):
    layer = quantize({"transformer": {"layers": {"x": {"kernel": kernel}}}})["transformer"]["layers"]["x"]
    return layer["kernel"] * layer["kernel_scale"]


def test_a_step_samples_from_what_it_says(run):
    """The behaviour log-probabilities are of the weights that drew: rescored under them they agree."""
    for kind in ("merged", "int8"):
        setup = dataclasses.replace(run.setup, rollout_weights=RolloutWeights(kind))
        rolled = jax.jit(functools.partial(step.rollout, setup))(run.state, run.frozen, run.batch)
        policy, params = for_rollout(setup.policy, merge(run.state.policy, run.frozen.policy), setup.rollout_weights)
        again = dataclasses.replace(setup, policy=policy)
        token, _ = step.read(
            again, params, run.frozen._replace(policy={}), run.batch, rolled.w_hat, rolled.responses.tokens
        )
        mask = rolled.responses.mask
        np.testing.assert_allclose(token.logp * mask, rolled.responses.logp * mask, rtol=1e-4, atol=1e-4)


def test_gathered_weights_are_the_same_on_a_mesh_and_lose_their_split(run):
    from meal_jax.runtime import sharding

    mesh = sharding.make_mesh(1, 2, 1, jax.devices()[:2])
    params = merge(run.state.policy, run.frozen.policy)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, sharding.shardings(params, mesh))
        gather = jax.jit(lambda params: for_rollout(run.setup.policy, params, RolloutWeights(gather=True))[1])
        whole = gather(split)
    kernel = lambda p: p["transformer"]["layers"]["attention"]["q"]["kernel"]  # noqa: E731
    assert not kernel(split).sharding.is_fully_replicated and kernel(whole).sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"config\.rollout\.weights='int4' is not one of same, merged, int8"):
        RolloutWeights("int4")
