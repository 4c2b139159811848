"""How a rollout holds its weights: merged is the same policy, eight bits are near it, gathered changes nothing."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal import step
from meal_jax.models.lora import Lora, merge
from meal_jax.rollout.sampling import Sampling
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
    kernel, peer = (p["transformer"]["layers"]["mlp"]["gate"] for p in (params, small))
    assert peer["kernel"].dtype == jnp.int8 and peer["kernel_scale"].shape == (2, 1, kernel["kernel"].shape[-1])
    error = jnp.abs(peer["kernel"] * peer["kernel_scale"] - kernel["kernel"])
    assert float(jnp.max(error / peer["kernel_scale"])) <= 0.5 + 1e-5
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


def test_adapters_that_read_a_preference_are_not_merged():
    run = tiny(adapters=LORA, conditioning="adapter", net=False)
    with pytest.raises(ValueError, match="differ by candidate: config.rollout.weights='merged' cannot be"):
        for_rollout(run.setup.policy, {}, RolloutWeights("merged"))


def test_gathered_weights_are_the_same_on_a_mesh_and_lose_their_split(run):
    from meal_jax.runtime import sharding

    mesh = sharding.make_mesh(1, 2, 1, jax.devices()[:2])
    params = merge(run.state.policy, run.frozen.policy)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, sharding.shardings(params, mesh))
        gather = jax.jit(lambda params: for_rollout(run.setup.policy, params, RolloutWeights(gather=True))[1])
        whole = gather(split)

    def kernel(p):
        return p["transformer"]["layers"]["attention"]["q"]["kernel"]

    assert not kernel(split).sharding.is_fully_replicated and kernel(whole).sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, whole, params)


LOCAL = {"window": 3, "local": (True, False), "local_rope_base": 500.0, "tied": False}


@pytest.mark.parametrize(
    ("how", "model", "conditioning"),
    [
        (RolloutWeights("merged", unstack_layers=True), {}, "prefix"),
        (RolloutWeights("int8", unstack_layers=True), LOCAL, "adapter"),
        (RolloutWeights("same", attention="triton"), LOCAL, "prefix"),
        (RolloutWeights("merged", unstack_layers=True, attention="triton"), {}, "prefix"),
    ],
    ids=["apart", "apart, int8, local layers, adapters read", "triton, local layers", "apart, triton"],
)
def test_layers_apart_and_the_kernel_sample_what_stacked_layers_do(how, model, conditioning):
    run = tiny(adapters=LORA, net=False, model=model, conditioning=conditioning, sampling=Sampling(temperature=1.3))
    theta = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(3), x.shape), run.state.policy)
    state = run.state.replace(policy=theta)
    plain, actual = (
        jax.jit(functools.partial(step.rollout, dataclasses.replace(run.setup, rollout_weights=first)))(
            state, run.frozen, run.batch
        )
        for first in (RolloutWeights(how.weights), how)
    )
    assert len(np.unique(plain.responses.tokens)) > 5
    np.testing.assert_array_equal(actual.responses.tokens, plain.responses.tokens)
    np.testing.assert_allclose(actual.responses.logp, plain.responses.logp, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(actual.pooled, plain.pooled, rtol=2e-5, atol=2e-5)


def test_adapters_named_by_their_stack_are_read_where_layers_are_apart():
    """A pattern that names the stack, as error messages do, finds no layer called layers_0."""
    run = tiny(adapters=Lora(2, targets="layers/attention/q$"), net=False)
    theta = jax.tree.map(lambda x: x + 0.5, run.state.policy)
    params = merge(theta, run.frozen.policy)
    policy, apart = for_rollout(run.setup.policy, params, RolloutWeights(unstack_layers=True))
    without = hidden(run.setup.policy, merge(run.state.policy, run.frozen.policy), run)
    expected = hidden(run.setup.policy, params, run)
    assert np.abs(expected - without).max() > 0.1
    np.testing.assert_allclose(hidden(policy, apart, run), expected, rtol=2e-5, atol=2e-5)


def test_layers_apart_are_sliced_outside_of_the_loop_over_tokens(run):
    """No program of the decoding loop takes a whole stack of kernels: what is apart stays apart."""
    setup = dataclasses.replace(run.setup, rollout_weights=RolloutWeights("merged", unstack_layers=True))
    jaxpr = jax.make_jaxpr(functools.partial(step.rollout, setup))(run.state, run.frozen, run.batch)
    (loop,) = [e for e in jaxpr.eqns if e.primitive.name == "while" and len(e.invars) > 30]
    kernel = run.frozen.policy["transformer"]["layers"]["mlp"]["gate"]["kernel"].shape
    shapes = [v.aval.shape for v in loop.invars]
    assert shapes.count(kernel[1:]) == 2 * kernel[0] and kernel not in shapes  # gate and up of each layer


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"config\.rollout\.weights='int4' is not one of same, merged, int8"):
        RolloutWeights("int4")
    with pytest.raises(ValueError, match=r"config\.rollout\.attention='paged' is not one of plain, triton"):
        RolloutWeights(attention="paged")


@pytest.mark.slow
def test_eight_bits_move_a_real_models_log_probabilities_little(capsys):
    """SmolLM2-135M-Instruct samples 32 tokens to each of 8 questions; the same tokens are read in eight bits."""
    source = Path(__file__).parents[2] / "weights" / "SmolLM2-135M-Instruct"
    if not source.exists():
        pytest.skip("needs the weights: bash launch/fetch_smollm2.sh")
    from meal_jax.data import chat as chats
    from meal_jax.hf import pretrained
    from meal_jax.models.policy import Conditioning, Policy, token_stats
    from meal_jax.rollout.decode import decode, sample_keys

    chat = chats.make(pretrained.load_tokenizer(source))
    things = ("bread", "a bicycle", "rain", "the moon", "a contract", "fever", "a chess opening", "rust on iron")
    asked = [chats.prompt_ids(chat, (("user", f"Tell me about {thing}."),)) for thing in things]
    prompts = chats.pad_left(asked, max(map(len, asked)), chat.pad)
    config = pretrained.load_config(source)
    policy = Policy(config, Conditioning("none", 2, tail=tuple(chats.tail_ids(chat))))
    params, w = {"transformer": pretrained.load_params(source, config)}, jnp.full((len(asked), 1, 2), 0.5)

    def read(params, tokens):
        apply = functools.partial(policy.apply, {"params": params})
        hidden = apply(apply(prompts.tokens, prompts.mask, method="prefill"), w, tokens, method="respond")
        return token_stats(functools.partial(apply, method="unembed"), hidden, tokens).logp

    prompt = policy.apply({"params": params}, prompts.tokens, prompts.mask, method="prefill")
    keys = sample_keys(jax.random.key(0), jnp.arange(len(asked)), 1)
    drawn = decode(policy, params, prompt, w, keys, max_new=32, sampling=Sampling(), end=chat.end, pad=chat.pad)
    exact, near = read(params, drawn.tokens), read(quantize(params), drawn.tokens)
    gap = np.abs(np.asarray(near - exact))[np.asarray(drawn.mask)]
    with capsys.disabled():
        print(
            f"\n|Δ log π|, {gap.size} tokens: mean {gap.mean():.4f}, median {np.median(gap):.4f}, largest {gap.max():.3f}"
        )
    assert 1e-4 < gap.mean() < 0.1
