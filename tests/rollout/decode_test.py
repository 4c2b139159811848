"""Cached decoding against the teacher-forced pass, its end, and what a sample depends on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, Policy, token_stats
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout import decode as decoding
from meal_jax.rollout.decode import Responses, decode, sample_keys
from meal_jax.rollout.sampling import Sampling, sample
from meal_jax.testing import tiny

SMALL = TransformerConfig(vocab_size=13, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=20)
TABLE = tuple(tuple((3 + level, 2 + k) for level in range(6)) for k in range(2))
KINDS = {
    "prefix": Conditioning("prefix", slots=3, hidden=8, tail=(4, 5)),
    "text": Conditioning("text", table=TABLE, tail=(2,)),
    "none": Conditioning("none"),
    "adapter": Conditioning("adapter", tail=(4,)),
    "adapter without tail": Conditioning("adapter"),
    "adapter+prefix": Conditioning("adapter+prefix", slots=3, hidden=8),
}
ADAPTED = dataclasses.replace(SMALL, lora=Lora(rank=4, alpha=6.0))


def module(kind):
    return Policy(ADAPTED if KINDS[kind].scales_adapters else SMALL, KINDS[kind])


PAD, END = 0, 1
FORBIDDEN = (jnp.arange(13) == PAD) | (jnp.arange(13) == 7)
MAX_NEW = 8
WARM = Sampling(temperature=0.7)  # one setting and one shape in most tests: each costs a compile
LENGTHS = (2, 6, 4, 5)


@functools.cache
def parameters(kind):
    """Random parameters; only their shapes come from `init`, whose compilation takes seconds."""
    args = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 3), jnp.int32)
    shapes = jax.eval_shape(module(kind).init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():  # the first caller may be one that is being traced

        def draw(leaf):
            return jnp.asarray(rng.normal(0, leaf.shape[-1] ** -0.5, leaf.shape), leaf.dtype)

        return jax.tree.map(draw, shapes)


def prompts():
    """Left-padded prompts [4, 6], mask, ids [4]."""
    mask = np.arange(6) >= 6 - np.array(LENGTHS)[:, None]
    tokens = np.where(mask, np.random.default_rng(1).integers(2, 13, (4, 6)), PAD)
    return jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray([7, 3, 9, 1])


def preferences(candidates=3):
    """[4, N, 2], a different one for each candidate."""
    first = np.random.default_rng(2).uniform(size=(4, candidates))
    return jnp.asarray(np.stack([first, 1 - first], -1), jnp.float32)


@functools.partial(jax.jit, static_argnames=("kind", "sampling"))
def rollout(kind, sampling, tokens, mask, ids, w, key, forbidden=FORBIDDEN, end=END) -> Responses:
    policy, params = module(kind), parameters(kind)
    prompt = policy.apply({"params": params}, tokens, mask, method="prefill")
    keys = sample_keys(key, ids, w.shape[1])
    options = dict(max_new=MAX_NEW, sampling=sampling, end=end, pad=PAD, forbidden=forbidden)
    return decode(policy, params, prompt, w, keys, **options)


@functools.partial(jax.jit, static_argnames=("kind", "sampling"))
def teacher_forced(kind, sampling, tokens, mask, ids, w, key, response):
    """(log-probabilities, tokens) that the uncached pass over a response gives at each of its positions."""
    policy = module(kind)

    def apply(*args, method):
        return policy.apply({"params": parameters(kind)}, *args, method=method)

    hidden = apply(apply(tokens, mask, method="prefill"), w, response, method="respond")
    unembed = functools.partial(apply, method="unembed")
    stats = token_stats(unembed, hidden, response, forbidden=FORBIDDEN, temperature=sampling.temperature, chunk=3)
    keys = sample_keys(key, ids, w.shape[1])

    def draw(t, hidden):  # position t by the key of (prompt, candidate, t)
        step_keys = jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, t)))(keys)
        return sample(step_keys, unembed(hidden), sampling, FORBIDDEN)[0]

    return stats.logp, jax.vmap(draw, (0, 2), 2)(jnp.arange(response.shape[2]), hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_equals_the_full_pass(kind):
    tokens, mask, ids = prompts()
    w, key = preferences(), jax.random.key(0)
    out = rollout(kind, WARM, tokens, mask, ids, w, key)
    logp, redrawn = teacher_forced(kind, WARM, tokens, mask, ids, w, key, out.tokens)
    np.testing.assert_allclose(out.logp, jnp.where(out.mask, logp, 0.0), atol=2e-5)
    np.testing.assert_array_equal(out.tokens, jnp.where(out.mask, redrawn, PAD))
    text = np.asarray(out.tokens)[np.asarray(out.mask)]
    assert len(set(text.tolist())) > 6 and not set(text.tolist()) & {PAD, 7}
    assert float(jnp.ptp(out.logp[out.mask])) > 1


@pytest.mark.parametrize("kind", ["prefix", "none"])
def test_after_its_end_a_response_is_pad(kind):
    tokens, mask, ids = prompts()
    out = rollout(kind, WARM, tokens, mask, ids, preferences(), jax.random.key(1))
    ended = np.asarray(out.ended).ravel()
    assert ended.any() and not ended.all()  # both kinds are looked at
    for row, visited, logp, over in zip(*(np.asarray(x).reshape(12, -1) for x in out), strict=True):
        length = row.tolist().index(END) + 1 if END in row else MAX_NEW
        assert bool(over[0]) == (END in row)
        assert visited.tolist() == [t < length for t in range(MAX_NEW)]
        assert (row[length:] == PAD).all() and (logp[length:] == 0).all() and (logp[:length] < 0).all()


def test_decoding_stops_when_all_have_ended(monkeypatch):
    """Counts the tokens drawn at run time, whatever the result says."""
    drawn = []
    real = decoding.sample

    def counted(*args):
        jax.debug.callback(lambda: drawn.append(1))
        return real(*args)

    monkeypatch.setattr(decoding, "sample", counted)
    run = jax.jit(
        lambda *args: rollout.__wrapped__("none", Sampling(), *args)
    )  # no cached trace, which would not count
    some, ids = jnp.arange(13), prompts()[2]
    for forbidden, minimum, maximum in (
        (some != END, 1, 1),
        (some > 2, 2, MAX_NEW - 1),
        (some == END, MAX_NEW, MAX_NEW),
    ):
        drawn.clear()
        out = jax.block_until_ready(run(*prompts()[:2], ids, preferences(), jax.random.key(0), forbidden))
        jax.effects_barrier()
        assert minimum <= len(drawn) <= maximum
        assert len(drawn) == int(out.mask.sum(-1).max())


def test_a_sample_depends_on_key_prompt_and_candidate_alone():
    tokens, mask, ids = prompts()
    w = preferences()
    key = jax.random.key(3)
    run = functools.partial(rollout, "prefix", WARM)
    whole = run(tokens, mask, ids, w, key).tokens

    order = jnp.asarray([2, 0, 3, 1])
    permuted = run(tokens[order], mask[order], ids[order], w[order], key).tokens
    np.testing.assert_array_equal(permuted, whole[order])

    def part(i):  # two prompts of the four, two candidates of the three, more padding
        rows = slice(i, i + 2)
        wider = [jnp.pad(a[rows], ((0, 0), (3, 0))) for a in (tokens, mask)]
        return run(*wider, ids[rows], w[rows, :2], key).tokens

    np.testing.assert_array_equal(jnp.concatenate([part(0), part(2)]), whole[:, :2])

    # And it does depend on each: the same prompt and preference under other ids, candidates and keys.
    same = jnp.broadcast_to(w[:1, :1], w.shape)
    alike = run(jnp.tile(tokens[1], (4, 1)), jnp.tile(mask[1], (4, 1)), ids, same, key).tokens.reshape(12, -1)
    assert len({tuple(row) for row in alike.tolist()}) == 12
    assert (run(tokens, mask, ids, w, jax.random.key(4)).tokens != whole).any()


def test_keys_of_a_prompt_do_not_move_with_its_place():
    key = jax.random.key(5)
    data = jax.random.key_data(sample_keys(key, jnp.asarray([4, 8, 15]), 3))
    assert len({tuple(k) for k in data.reshape(9, -1).tolist()}) == 9
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(key, jnp.asarray([15]), 2))[0], data[2, :2])


def test_greedy_decoding_needs_no_luck():
    tokens, mask, ids = prompts()
    run = functools.partial(rollout, "prefix", Sampling(temperature=0), tokens, mask, ids, preferences())
    np.testing.assert_array_equal(run(jax.random.key(0)).tokens, run(jax.random.key(1)).tokens)


def test_one_new_token_and_no_conditioning_need_no_cache():
    tokens, mask, ids = prompts()
    policy, params = Policy(SMALL, KINDS["none"]), parameters("none")

    @jax.jit
    def run():
        prompt = policy.apply({"params": params}, tokens, mask, method="prefill")
        keys = sample_keys(jax.random.key(0), ids, 2)
        out = decode(policy, params, prompt, preferences(2), keys, max_new=1, sampling=Sampling(0.0), end=END, pad=PAD)
        return out, policy.apply({"params": params}, prompt.last, method="unembed")

    out, logits = run()
    np.testing.assert_array_equal(out.tokens[..., 0], jnp.argmax(logits, -1)[:, None].repeat(2, 1))
    assert out.mask.all()


def test_the_cache_is_updated_in_place():
    """In the compiled program no loop copies the cache: it is written by slices, and copied once before the loops."""
    run = tiny(batch=3, max_new=38)
    candidates, c = 5, run.setup.policy.config

    def roll(params, key):
        tokens, mask = run.batch.tokens, run.batch.mask
        prompt = run.setup.policy.apply({"params": params}, tokens, mask, method="prefill")
        w, keys = jnp.full((3, candidates, 2), 0.5), sample_keys(key, run.batch.id, candidates)
        settings = dict(max_new=38, sampling=Sampling(), end=run.setup.end, pad=run.setup.pad)
        return decode(run.setup.policy, params, prompt, w, keys, **settings)

    text = jax.jit(roll).lower(run.state.policy, jax.random.key(0)).compile().as_text()
    length = run.setup.policy.conditioning.length + 37
    shape = f"f32[{c.layers},3,{candidates},{length},{c.kv_heads},{c.head_dim}]"
    where, copies, writes = "", [], 0
    for line in text.splitlines():
        if line and not line.startswith(" "):
            where = line.split()[0]
        made = line.partition(" = ")[2]
        copies += [where] * (made.startswith(shape) and " copy(" in made)
        writes += made.startswith(shape) and " dynamic-update-slice(" in made
    assert writes >= 4  # keys and values, of the conditioning and of a step
    assert all(place == "ENTRY" for place in copies)
