"""Rollouts that drop ended rows, against the plain loop to the bit: on one device, on meshes, for mixtures of policies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.lora import Lora, merge
from meal_jax.rollout import compact
from meal_jax.rollout import decode as decoding
from meal_jax.rollout.decode import decode, decode_mixture, sample_keys
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import sharding
from meal_jax.testing import tiny

B, N, T = 8, 4, 6
SHARES = (0.75, 0.25)  # of 32 rows: 24, 8
HALF = (0.5,)  # compiles less
# Wide enough that a CPU's products are the library's at all row counts; the smallest are compiled inline.
WIDE = {"vocab_size": 16, "width": 64, "hidden": 96, "head_dim": 16}
RNG = np.random.default_rng(0)
ENDS = {  # the last step of each response
    "uneven": RNG.integers(1, T + 1, (B, N)),
    "all at once": np.full((B, N), 3),
    "none ends": np.full((B, N), T),
    "one long": np.where(np.arange(B * N).reshape(B, N) == 13, T, 2),
    "one prompt long": np.where(np.arange(B)[:, None] == 5, T, 1) * np.ones((1, N), int),
}


@functools.cache
def case(kind="none"):
    adapters = Lora(rank=4, alpha=6.0) if "adapter" in kind else None
    run = tiny(batch=B, max_new=T, conditioning=kind, adapters=adapters, model=WIDE)
    rng = np.random.default_rng(1)
    shapes = {"policy": run.state.policy, "frozen": run.frozen.policy}
    drawn = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)
    setup = dataclasses.replace(run.setup, forbidden=jnp.arange(16) == run.setup.pad)
    return setup, setup.policy, merge(drawn["policy"], drawn["frozen"]), run.batch


def preferences(candidates):
    first = np.random.default_rng(2).uniform(size=(B, candidates))
    return jnp.asarray(np.stack([first, 1 - first], -1), jnp.float32)


def roll(kind, shares, params, batch, limits):
    setup, policy, _, _ = case(kind)
    prompt = policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
    keys = sample_keys(jax.random.key(3), batch.id, limits.shape[1])
    return decode(
        policy, params, prompt, preferences(limits.shape[1]), keys, max_new=T, sampling=Sampling(compact=shares),
        end=setup.end, pad=setup.pad, forbidden=setup.forbidden, limits=limits,
    )  # fmt: skip


rollout = jax.jit(roll, static_argnames=("kind", "shares"))


def both(kind, limits, run=rollout, shares=SHARES):
    _, _, params, batch = case(kind)
    return [run(kind, rungs, params, batch, jnp.asarray(limits, jnp.int32)) for rungs in ((), shares)]


@functools.cache
def rounds_alike():
    """Whether the plain loop has the same bits where every candidate has a copy of its prompt, as compacted rows have.

    That is a property of the CPU's kernels (a Zen 3 has not). Nothing compacted is run here.
    """
    setup, policy, params, batch = case("none")

    @jax.jit
    def run(batch, w, keys):
        prompt = policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
        options = dict(max_new=T, sampling=Sampling(), end=setup.end, pad=setup.pad, forbidden=setup.forbidden)
        return decode(policy, params, prompt, w, keys, **options).logp

    w, keys = preferences(N), sample_keys(jax.random.key(3), batch.id, N)
    alone = jax.tree.map(lambda a: jnp.repeat(a, N, axis=0), batch), w.reshape(-1, 1, 2), keys.reshape(-1, 1)
    return bool(jnp.all(run(*alone).reshape(B, N, T) == run(batch, w, keys)))


def assert_same_bits(plain, compacted):
    if not rounds_alike():
        for name in ("tokens", "mask", "ended"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(compacted, name), err_msg=name)
        np.testing.assert_allclose(plain.logp, compacted.logp, rtol=0, atol=2e-6)
        pytest.skip(
            "this CPU's kernels round otherwise where a candidate has a prompt to itself: there are no bits to keep"
        )
    for name, a, b in zip(plain._fields, plain, compacted, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


@pytest.mark.parametrize("ends", ENDS)
def test_compacted_rollouts_equal_plain_ones_to_the_bit(ends):
    plain, compacted = both("none", ENDS[ends])
    assert_same_bits(plain, compacted)
    lengths = np.asarray(plain.mask).sum(-1)
    assert (lengths <= ENDS[ends]).all() and lengths.max() > 1
    assert float(jnp.ptp(plain.logp[plain.mask])) > 1


def test_adapters_scaled_by_each_candidates_preference():
    """Every candidate has a preference of its own, which each step's adapters read."""
    assert_same_bits(*both("adapter+prefix", ENDS["uneven"], shares=HALF))


def test_one_candidate_per_prompt():
    """Rows of 32 prompts: each keeps its own prompt."""
    setup, policy, params, batch = case()
    tiled = jax.tree.map(lambda a: jnp.concatenate([a] * 4), batch)._replace(id=jnp.arange(4 * B))
    limits = jnp.asarray(ENDS["uneven"].reshape(-1, 1), jnp.int32)

    @functools.partial(jax.jit, static_argnames="shares")
    def run(shares):
        prompt = policy.apply({"params": params}, tiled.tokens, tiled.mask, method="prefill")
        keys = sample_keys(jax.random.key(3), tiled.id, 1)
        w = jnp.full((4 * B, 1, 2), 0.5)
        options = dict(max_new=T, sampling=Sampling(compact=shares), end=setup.end, pad=setup.pad, limits=limits)
        return decode(policy, params, prompt, w, keys, **options)

    plain, compacted = run(()), run(HALF)
    assert_same_bits(plain, compacted)
    assert plain.mask.any(1).sum() > T  # not all alike


def test_mixtures_of_policies():
    setup, policy, params, batch = case()
    other = jax.tree.map(lambda a: a[..., ::-1], params)

    @functools.partial(jax.jit, static_argnames="shares")
    def run(shares):
        scales = jnp.asarray(np.random.default_rng(4).uniform(size=(B, N, 2)), jnp.float32)
        keys = sample_keys(jax.random.key(5), batch.id, N)
        options = dict(max_new=T, sampling=Sampling(compact=shares), end=15, pad=setup.pad)
        models = ((policy, params), (policy, other))
        return decode_mixture(models, scales, batch.tokens, batch.mask, preferences(N), keys, **options)

    plain, compacted = run(()), run((0.75,))
    assert_same_bits(plain, compacted)
    assert 8 <= int(plain.ended.sum()) < B * N  # so many that 24 of 32 rows went on


@pytest.mark.parametrize("axes", [(2, 2, 2)])
def test_on_meshes(axes):
    """The compacted rollout of a mesh equals the plain one of the same mesh, which one group for all devices would not."""
    setup, policy, params, batch = case("prefix")
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[: np.prod(axes)])
    parts = axes[0] * axes[1]
    wide = jax.tree.map(lambda a: jnp.concatenate([a] * parts), batch)._replace(id=jnp.arange(parts * B))
    limits = jnp.asarray(np.concatenate([np.roll(ENDS["uneven"], i) for i in range(parts)]), jnp.int32)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings({"policy": params}, mesh)["policy"])
        rows = jax.device_put((wide, limits), sharding.batch_sharding(mesh))

        @functools.partial(jax.jit, static_argnames="shares", out_shardings=sharding.batch_sharding(mesh))
        def run(params, rows, shares):
            batch, limits = rows
            prompt = policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
            keys = sample_keys(jax.random.key(3), batch.id, N)
            options = dict(max_new=T, sampling=Sampling(compact=shares), end=setup.end, pad=setup.pad, limits=limits)
            return decode(policy, params, prompt, jnp.tile(preferences(N), (parts, 1, 1)), keys, **options)

        assert compact.split_groups(parts * B) == parts
        plain, compacted = run(placed, rows, shares=()), run(placed, rows, shares=SHARES)
    assert_same_bits(plain, compacted)


def test_fewer_rows_are_computed(monkeypatch):
    """Counts the rows of every draw at run time: each step has the smallest rung that holds the live ones."""
    rows = []
    real = decoding.sample

    def counted(keys, *args):
        jax.debug.callback(lambda: rows.append(keys.size), ordered=True)
        return real(keys, *args)

    monkeypatch.setattr(decoding, "sample", counted)
    run = jax.jit(lambda *args: roll(*args), static_argnums=(0, 1))  # a trace of its own, which counts
    for ends in ("uneven", "one long", "none ends"):
        rows.clear()
        _, compacted = both("none", ENDS[ends], run)
        jax.effects_barrier()
        live = np.asarray(compacted.mask).sum((0, 1))
        live = live[live > 0].tolist()
        plain, mine = rows[: len(live)], rows[len(live) :]
        assert plain == [B * N] * len(live)
        assert mine == [min(size for size in (32, 24, 8) if size >= count) if t else 32 for t, count in enumerate(live)]


def test_ladder():
    assert compact.ladder(32, (0.75, 0.5, 0.25)) == (24, 16, 8)
    assert compact.ladder(20, (0.5, 0.1, 0.3)) == (12, 8)  # multiples of 4, from 8 on, none twice
    assert compact.ladder(8, (0.5,)) == () == compact.ladder(100, ())


def test_what_cannot_be_is_refused():
    for shares in ((0.5, 1.5), (0,), [0.5], 0.5):
        with pytest.raises(ValueError, match=r"config\.sampling\.compact"):
            Sampling(compact=shares)
    with pytest.raises(ValueError, match=r"config\.sampling\.compact=\(\)"):
        Sampling(compact=(0.5,), watch=print)
