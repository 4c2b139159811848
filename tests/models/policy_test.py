"""Token statistics in chunks and against sums in numpy, and how each kind of conditioning enters the policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.policy import Conditioning, Policy, token_stats
from meal_jax.models.transformer import TransformerConfig

SMALL = TransformerConfig(vocab_size=29, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=20)
TABLE = tuple(tuple((3 + level, 20 + k) for level in range(6)) for k in range(2))  # width 2, levels of 0.2
KINDS = {
    "prefix": Conditioning("prefix", slots=3, hidden=8),
    "text": Conditioning("text", table=TABLE, tail=(2,)),
    "none": Conditioning("none"),
    "prefix and tail": Conditioning("prefix", slots=3, hidden=8, tail=(4, 5)),
    "none and tail": Conditioning("none", tail=(4, 5)),
}
FORBIDDEN = jnp.arange(11) % 4 == 1


def drawn():
    """(hidden, the reference's hidden [2, 3, 7, 5], tables [11, 5] of both, tokens [2, 3, 7], none forbidden)."""
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 7, 5), (2, 3, 7, 5), (11, 5), (11, 5))
    ]
    return *arrays, jnp.asarray(rng.choice(np.flatnonzero(~FORBIDDEN), (2, 3, 7)))


def stats(hidden, hidden_ref, table, table_ref, tokens, chunk):
    unembed = lambda table: lambda h: h @ table.T  # noqa: E731
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
    return Policy(SMALL, conditioning).apply({"params": params}, jnp.asarray(w), method="condition")


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_has_its_length_and_ends_in_its_tail(random_params, kind):
    conditioning = KINDS[kind]
    params = random_params(SMALL, conditioning)
    slots = condition(conditioning, params, [[[0.3, 0.7]] * 4])
    assert slots.shape == (1, 4, conditioning.length, 16)
    assert conditioning.length == {"prefix": 3, "text": 5, "none": 0, "prefix and tail": 5, "none and tail": 2}[kind]
    tail = params["transformer"]["embedding"][jnp.asarray(conditioning.tail, int)]
    np.testing.assert_array_equal(slots[0, 3, conditioning.length - len(tail) :], tail)


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
    params = random_params(SMALL, conditioning)
    policy = Policy(SMALL, conditioning)

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


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(kind="prose"), "conditioning.kind='prose' is not one of prefix, text, none"),
        (dict(kind="text", objectives=3, table=TABLE), "spells 2 objectives, there are 3"),
    ],
)
def test_bad_conditioning_is_named(entries, message):
    with pytest.raises(ValueError, match=message):
        Conditioning(**entries)
