"""Token statistics in chunks and against sums in numpy, and how each kind of conditioning enters the policy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.lora import Lora, bake
from meal_jax.models.policy import Conditioning, Policy, token_stats
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.weights import take_apart

SMALL = TransformerConfig(vocab_size=29, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=20)
TABLE = tuple(tuple((3 + level, 20 + k) for level in range(6)) for k in range(2))  # width 2, levels of 0.2
KINDS = {
    "prefix": Conditioning("prefix", slots=3, hidden=8),
    "text": Conditioning("text", table=TABLE, tail=(2,)),
    "none": Conditioning("none"),
    "prefix and tail": Conditioning("prefix", slots=3, hidden=8, tail=(4, 5)),
    "none and tail": Conditioning("none", tail=(4, 5)),
    "adapter": Conditioning("adapter"),
    "adapter and tail": Conditioning("adapter", tail=(4,)),
    "adapter and prefix": Conditioning("adapter+prefix", slots=3, hidden=8),
    "adapter and text": Conditioning("adapter+text", table=TABLE, tail=(2,)),
}
ADAPTED = dataclasses.replace(SMALL, lora=Lora(rank=4, alpha=6.0, targets=""))


def config_of(conditioning):
    """A decoder with adapters where they are to read the preference."""
    return ADAPTED if conditioning.scales_adapters else SMALL


FORBIDDEN = jnp.arange(11) % 4 == 1


def drawn():
    """(hidden, the reference's hidden [2, 3, 7, 5], tables [11, 5] of both, tokens [2, 3, 7], none forbidden)."""
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 7, 5), (2, 3, 7, 5), (11, 5), (11, 5))
    ]
    return *arrays, jnp.asarray(rng.choice(np.flatnonzero(~FORBIDDEN), (2, 3, 7)))


def stats(hidden, hidden_ref, table, table_ref, tokens, chunk):

    def unembed(table):
        return lambda h: h @ table.T

    return token_stats(
        unembed(table),
        hidden,
        tokens,
        forbidden=FORBIDDEN,
        temperature=0.7,
        reference=(unembed(table_ref), hidden_ref),
        chunk=chunk,
    )


def test_token_stats_are_those_of_the_sampler():
    hidden, hidden_ref, table, table_ref, tokens = drawn()
    out = stats(hidden, hidden_ref, table, table_ref, tokens, 0)
    allowed = np.flatnonzero(~FORBIDDEN)

    def probabilities(h, t):
        z = np.exp(np.asarray(h, np.float64) @ np.asarray(t, np.float64)[allowed].T / 0.7)
        return z / z.sum(-1, keepdims=True)

    p, q = probabilities(hidden, table), probabilities(hidden_ref, table_ref)
    index = np.searchsorted(allowed, tokens)
    np.testing.assert_allclose(out.logp, np.log(np.take_along_axis(p, index[..., None], -1)[..., 0]), atol=1e-5)
    np.testing.assert_allclose(out.kl, (p * np.log(p / q)).sum(-1), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_chunks_change_memory_and_nothing_else(chunk):
    *arrays, tokens = drawn()
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, *tokens.shape)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def value_and_grad(arrays, chunk):
        def loss(arrays):
            out = stats(*arrays, tokens, chunk)
            return jnp.sum(weight[0] * out.logp + weight[1] * out.kl), out

        return jax.value_and_grad(loss, has_aux=True)(arrays)

    (_, whole), whole_grads = value_and_grad(arrays, 0)
    (_, cut), cut_grads = value_and_grad(arrays, chunk)
    assert cut.logp.shape == cut.kl.shape == tokens.shape
    np.testing.assert_allclose(cut.logp, whole.logp, atol=1e-5)
    np.testing.assert_allclose(cut.kl, whole.kl, atol=1e-5)
    for a, b in zip(cut_grads, whole_grads, strict=True):
        assert float(jnp.abs(b).max()) > 0.1
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_token_stats_without_a_reference_have_no_kl():
    hidden, _, table, _, tokens = drawn()
    out = token_stats(lambda h: h @ table.T, hidden, tokens, chunk=2)
    assert out.kl is None and out.logp.shape == tokens.shape


def condition(conditioning, params, w):
    return Policy(config_of(conditioning), conditioning).apply({"params": params}, jnp.asarray(w), method="condition")


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_has_its_length_and_ends_in_its_tail(random_params, kind):
    conditioning = KINDS[kind]
    params = random_params(config_of(conditioning), conditioning)
    slots = condition(conditioning, params, [[[0.3, 0.7]] * 4])
    assert slots.shape == (1, 4, conditioning.length - conditioning.rereads, 16)
    lengths = {"prefix": 3, "text": 5, "none": 0, "prefix and tail": 5, "none and tail": 2, "adapter": 1}
    lengths |= {"adapter and tail": 1, "adapter and prefix": 3, "adapter and text": 5}
    assert conditioning.length == lengths[kind]
    tail = params["transformer"]["embedding"][jnp.asarray(conditioning.tail, int)]
    np.testing.assert_array_equal(slots[0, 3, slots.shape[2] - len(tail) :], tail)


def test_a_tail_stands_between_prompt_and_response(random_params):
    """Without a preference, a prompt and a tail are as a longer prompt."""
    params = random_params(SMALL)
    prompt, tail, response = [[3, 1, 4]], [4, 5], jnp.asarray([[[5, 9, 2]]])

    @functools.partial(jax.jit, static_argnums=0)
    def respond(conditioning, prompt):
        policy = Policy(SMALL, conditioning)
        prefilled = policy.apply({"params": params}, prompt, jnp.ones_like(prompt, bool), method="prefill")
        return policy.apply({"params": params}, prefilled, jnp.zeros((1, 1, 2)), response, method="respond")

    with_tail = respond(KINDS["none and tail"], jnp.asarray(prompt))
    longer = respond(KINDS["none"], jnp.asarray([prompt[0] + tail]))
    np.testing.assert_allclose(with_tail, longer, atol=1e-5)


def test_text_spells_the_preference_to_the_nearest_level(random_params):
    params = random_params(SMALL, KINDS["text"])
    slots = condition(KINDS["text"], params, [[[0.0, 1.0], [0.31, 0.69]]])
    spelled = jnp.asarray([[3, 20, 8, 21, 2], [5, 20, 6, 21, 2]])  # levels 0 and 5; then 1.55 and 3.45, so 2 and 3
    np.testing.assert_array_equal(slots[0], params["transformer"]["embedding"][spelled])


def test_prefix_is_differentiable_in_the_preference(random_params):
    params = random_params(SMALL, KINDS["prefix"])
    grad = jax.grad(lambda w: jnp.sum(condition(KINDS["prefix"], params, w) ** 2))(jnp.asarray([[[0.3, 0.7]]]))
    assert float(jnp.abs(grad).min()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_position_t_sees_the_preference_and_the_tokens_before_t_alone(random_params, kind):
    conditioning = KINDS[kind]
    params = random_params(config_of(conditioning), conditioning)
    policy = Policy(config_of(conditioning), conditioning)

    @jax.jit
    def respond(prompt, w, response):
        prefilled = policy.apply({"params": params}, prompt, jnp.ones_like(prompt, bool), method="prefill")
        return policy.apply({"params": params}, prefilled, w, response, method="respond")[0, 0]

    prompt, response = jnp.asarray([[3, 1, 4, 1]]), jnp.asarray([[[5, 9, 2, 6, 5]]])
    w = jnp.asarray([[[0.2, 0.8]]])
    hidden = respond(prompt, w, response)
    later = respond(prompt, w, response.at[0, 0, 2].set(7))
    np.testing.assert_array_equal(hidden[:3], later[:3])
    assert (jnp.abs(hidden[3:] - later[3:]).max(-1) > 1e-3).all()
    assert (jnp.abs(hidden - respond(prompt.at[0, 0].set(8), w, response)).max(-1) > 1e-3).all()
    moved = jnp.abs(hidden - respond(prompt, 1.0 - w, response)).max(-1)
    assert (moved == 0).all() if conditioning.kind == "none" else (moved > 1e-3).all()


PROMPT, RESPONSE = jnp.asarray([[3, 1, 4, 1], [2, 7, 1, 8]]), jnp.asarray([[[5, 9, 2, 6, 5]]] * 2)
SEEN = jnp.asarray([[False, True, True, True], [True] * 4])


@functools.partial(jax.jit, static_argnums=(0, 1))
def read_prompt(config, conditioning, params, w=None):
    return Policy(config, conditioning).apply({"params": params}, PROMPT, SEEN, w=w, method="prefill")


@functools.partial(jax.jit, static_argnums=(0, 1))
def read_response(config, conditioning, params, prompt, w):
    return Policy(config, conditioning).apply({"params": params}, prompt, w, RESPONSE, method="respond")[:, 0]


def test_a_one_hot_preference_is_that_objectives_expert_and_the_uniform_one_the_plain_adapter(random_params):
    """Adapters that read w, against plain ones: blocks of rank R / K with the same alpha, and `bake` in between."""
    reads, plain = Conditioning("adapter", tail=(4,)), Conditioning("none", tail=(4,))
    params = random_params(ADAPTED, reads)
    expert = dataclasses.replace(ADAPTED, lora=dataclasses.replace(ADAPTED.lora, rank=2))

    def block(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf[..., 2:] if "lora_a" in name else leaf[..., 2:, :] if "lora_b" in name else leaf

    words = jnp.broadcast_to(jnp.asarray([0.0, 1.0]), (2, 1, 2))
    mixed = jnp.broadcast_to(jnp.asarray([0.3, 0.7]), (2, 1, 2))
    uniform = read_prompt(ADAPTED, reads, params)
    result = {}
    for w, config, alike in (
        (words, expert, jax.tree_util.tree_map_with_path(block, params)),
        (mixed, ADAPTED, {**params, "transformer": bake(params["transformer"], jnp.asarray([0.3, 0.7]))}),
    ):
        # The prompt at the preference too: a plain model throughout.
        own = read_prompt(ADAPTED, reads, params, w)
        expected = read_prompt(config, plain, alike)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), own, expected)
        response = functools.partial(read_response, config, plain, alike)
        np.testing.assert_allclose(read_response(ADAPTED, reads, params, own, w), response(expected, w), atol=5e-5)
        # The prompt at the uniform preference, which is the plain adapter's, and the response at w.
        result[config] = read_response(ADAPTED, reads, params, uniform, w)
        np.testing.assert_allclose(result[config], response(uniform, w), atol=5e-5)
    assert float(jnp.abs(result[expert] - result[ADAPTED]).max()) > 0.05
    jax.tree.map(np.testing.assert_array_equal, uniform, read_prompt(ADAPTED, plain, params))
    even = jnp.full((2, 1, 2), 0.5)
    plainly = read_response(ADAPTED, plain, params, uniform, even)
    np.testing.assert_array_equal(read_response(ADAPTED, reads, params, uniform, even), plainly)


@pytest.mark.parametrize(
    ("model", "prompt"),
    [({}, "uniform"), ({"unstack_layers": True}, "preference"), ({"remat": "full"}, "preference")],
    ids=["scanned", "unstacked", "remat"],
)
def test_the_gradient_in_the_preference_through_adapters_is_that_of_finite_differences(random_params, model, prompt):
    reads, config = Conditioning("adapter", tail=(4,)), dataclasses.replace(ADAPTED, **model)
    params = random_params(ADAPTED, reads)
    params = take_apart(params) if config.unstack_layers else params
    direction = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)

    @jax.jit
    def value(w):
        words = read_prompt(config, reads, params, w if prompt == "preference" else None)
        return jnp.sum(direction * read_response(config, reads, params, words, w))

    w, step = jnp.asarray([[[0.3, 0.7]], [[0.9, 0.1]]]), 3e-3
    grad = jax.grad(value)(w)
    for i in np.ndindex(w.shape):
        e = jnp.zeros_like(w).at[i].set(step)
        np.testing.assert_allclose(grad[i], (value(w + e) - value(w - e)) / (2 * step), rtol=5e-3, atol=0.03)
    assert float(jnp.abs(grad).min()) > 0.3


def test_a_policy_without_adapters_cannot_read_a_preference_in_them(random_params):
    with pytest.raises(ValueError, match="conditioning.kind='adapter' scales adapters, and this policy has none"):
        random_params(SMALL, Conditioning("adapter"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            dict(kind="prose"),
            "conditioning.kind='prose' is not one of prefix, text, adapter, adapter.prefix, adapter.text, none",
        ),
        (dict(kind="adapter", prompt="both"), "conditioning.prompt='both' is not one of uniform, preference"),
        (dict(kind="text", objectives=3, table=TABLE), "spells 2 objectives, there are 3"),
    ],
)
def test_bad_conditioning_is_named(entries, message):
    with pytest.raises(ValueError, match=message):
        Conditioning(**entries)
