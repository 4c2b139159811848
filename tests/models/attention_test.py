"""The fused ways to attend against the plain one: values, gradients, on a mesh, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.models.attention import KeyValues, attend, attend_fused
from meal_jax.models.decode_attention import BLOCK, attend_one
from meal_jax.runtime import sharding


def draw(batch, candidates, steps, keys, shared, groups, rows, width, query_at, window=0, dtype="float32"):
    """Queries at `query_at` … of a cache of `keys`, whose prompts of `shared` keys are left-padded by 0, 1, … tokens."""
    k = jax.random.split(jax.random.key(0), 5)

    def normal(key, *shape):
        return jax.random.normal(key, shape).astype(dtype)

    q = normal(k[0], batch, candidates, steps, groups * rows, width)
    own = KeyValues(*(normal(key, batch, candidates, keys, groups, width) for key in k[1:3]))
    back = (query_at + jnp.arange(steps))[:, None] - jnp.arange(keys)
    mask = ((back >= 0) & (back < (window or keys)))[None, None]
    if not shared:
        return q, own, mask, None, None
    prompt = KeyValues(*(normal(key, batch, shared, groups, width) for key in k[3:]))
    return q, own, mask, prompt, (jnp.arange(shared) >= jnp.arange(batch)[:, None])[:, None, None]


ONE = {
    "heads that share keys, two blocks": dict(
        shared=17, keys=BLOCK + 66, groups=2, rows=3, width=16, query_at=BLOCK + 36
    ),
    "no prompt, one key": dict(shared=0, keys=65, groups=4, rows=1, width=16, query_at=0),
    "a block's edge": dict(shared=BLOCK, keys=BLOCK, groups=1, rows=2, width=32, query_at=BLOCK - 1),
    "past a block's edge": dict(shared=BLOCK + 1, keys=2 * BLOCK, groups=1, rows=2, width=32, query_at=BLOCK),
    "more than sixteen heads to a group": dict(shared=3, keys=5, groups=1, rows=17, width=8, query_at=2),
    "a window": dict(shared=9, keys=2 * BLOCK + 1, groups=2, rows=1, width=16, query_at=2 * BLOCK - 1, window=20),
}


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("case", ONE)
def test_the_decoding_kernel_attends_as_the_plain_one_does(case, cap):
    args = draw(3, 2, 1, **ONE[case])
    exact, actual = (jax.jit(functools.partial(f, scale=0.3, cap=cap))(*args) for f in (attend, attend_one))
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


def test_the_decoding_kernel_reads_no_key_that_is_not_written_yet():
    q, own, mask, prompt, prompt_mask = draw(2, 2, 1, keys=2 * BLOCK, shared=4, groups=2, rows=2, width=16, query_at=10)
    spoiled = jax.tree.map(lambda a: a.at[:, :, BLOCK:].set(jnp.nan), own)  # beyond the last block that is seen
    clean = attend_one(q, own, mask, prompt, prompt_mask)
    np.testing.assert_array_equal(attend_one(q, spoiled, mask, prompt, prompt_mask), clean)


@pytest.mark.parametrize("groups", [2, 3])  # over the tensor axis of 2, and not
@pytest.mark.parametrize("shared", [0, 5])
def test_the_decoding_kernel_on_a_mesh_does_each_devices_part(groups, shared):
    mesh = sharding.make_mesh(2, 2, 2)
    args = draw(4, 2, 1, keys=9, shared=shared, groups=groups, rows=2, width=8, query_at=6)
    exact = attend(*args)
    with jax.set_mesh(mesh):
        rows = sharding.batch_sharding(mesh)
        placed = jax.tree.map(lambda a: jax.device_put(a, rows) if a.shape[0] == 4 else a, args)
        actual = jax.jit(attend_one)(*placed)
        text = jax.jit(attend_one).lower(*placed).compile().as_text()
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)
    assert "all-gather(" not in text or groups == 3


def test_the_decoding_kernel_refuses_an_odd_head_width():
    args = draw(1, 1, 1, keys=4, shared=0, groups=1, rows=1, width=12, query_at=2)
    with pytest.raises(ValueError, match="head width that is a power of two, not 12"):
        attend_one(*args)


@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("window", [0, 3])
def test_the_fused_kernels_arrangement_attends_as_the_plain_one_does(shared, window):
    """On XLA's operations in the kernel's place: which keys a query sees, and whose gradients go where."""
    q, own, mask, prompt, prompt_mask = draw(
        3, 2, 5, keys=5, shared=shared, groups=2, rows=2, width=8, query_at=0, window=window
    )

    def loss(way, q, own, prompt):
        y = way(q, own, mask, prompt, prompt_mask, 0.4)
        return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape))), y

    result = {}
    for name, way in {"plain": attend, "fused": functools.partial(attend_fused, implementation="xla")}.items():
        result[name] = jax.value_and_grad(functools.partial(loss, way), argnums=(0, 1, 2), has_aux=True)(q, own, prompt)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), result["fused"], result["plain"])


def test_queries_that_see_nothing_leave_the_others_and_their_gradients_alone(monkeypatch):
    q, own, _, _, _ = draw(2, 1, 6, keys=6, shared=0, groups=1, rows=2, width=8, query_at=0)
    real = jnp.arange(6) >= jnp.array([[0], [3]])  # the second row begins with padding
    mask = (jnp.tril(jnp.ones((6, 6), bool)) & real[:, None, :])[:, None]
    fused = functools.partial(attend_fused, implementation="xla")
    assert not jnp.all(jnp.any(mask, axis=-1))

    def loss(way, q, own):
        return jnp.sum(jnp.sin(way(q, own, mask, None, None)) * real[:, None, :, None, None])

    plain, actual = (jax.grad(functools.partial(loss, way), argnums=(0, 1))(q, own) for way in (attend, fused))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), actual, plain)
    # The kernel that this stands for gives NaN if a row of its mask is empty: none is.
    result, inner = [], jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, mask, **k: result.append(mask) or inner(*a, mask=mask, **k)
    )
    fused(q[:, :, :5], own, mask[:, :, :5], None, None)
    assert result[0].shape == (2, 1, 6, 6) and jnp.all(jnp.any(result[0], axis=-1))


def test_the_fused_kernel_says_what_it_cannot():
    args = draw(1, 1, 4, keys=4, shared=0, groups=1, rows=1, width=8, query_at=0)
    with pytest.raises(ValueError, match="does not cap scores"):
        attend_fused(*args, cap=30.0)
    with pytest.raises(ValueError, match="computes in bfloat16"):
        attend_fused(*args)
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, not cpu"):
        attend_fused(*draw(1, 1, 4, keys=4, shared=0, groups=1, rows=1, width=8, query_at=0, dtype="bfloat16"))
