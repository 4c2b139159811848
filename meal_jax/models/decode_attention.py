"""Attention of one new token of each sequence as one kernel, written in Pallas and compiled by Triton for GPUs.

What XLA makes of `attention.attend` for a single query is a dozen small programs a layer, of which one reads the cache at
a fraction of the memory's speed (docs/performance.md). Here one program serves a sequence and a group of heads: it walks over
the prompt's keys and then the sequence's own, as far as there are any, with a running softmax (Milakov and Gimelshein 2018,
arXiv 1805.02867; Dao 2023, arXiv 2307.08691).

Letters as in transformer.py: B prompts, N candidates, S keys, H heads, G key-value heads, R = H / G, C head width.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec as P

from meal_jax.models.attention import MASKED, by_group, softcap
from meal_jax.runtime.sharding import BATCH_AXES

ROWS = 16  # the least rows of a product on tensor cores; queries of a group are filled up to it
BLOCK = 64  # keys at a time


def attend_one(q, own, own_mask, prompt, prompt_mask, scale=None, cap=None):
    """`attention.attend` for T = 1, without a gradient; its arguments, and its result to rounding.

    On a mesh each device runs the kernel on its own prompts and heads. Out of a stack of layers XLA would copy each layer's
    keys for it: it goes with `rollout.unstack_layers`. Where there is no GPU it is interpreted, slowly.

    Raises:
      ValueError: C is no power of two.
    """
    shape, width = q.shape, q.shape[-1]
    if width & (width - 1):
        raise ValueError(f"config.rollout.attention='triton' needs a head width that is a power of two, not {width}.")
    q = by_group(q, own.k.shape[-2], scale)[:, :, 0]

    def flat(mask, keys):
        return jnp.broadcast_to(mask, (*mask.shape[:2], 1, keys.shape[-3]))[:, :, 0]

    visible = flat(own_mask, own.k)
    # Keys up to the last that is seen
    live = jnp.max(jnp.where(visible, jnp.arange(1, visible.shape[-1] + 1), 0)).reshape(1)
    keys = [*own, visible.astype(jnp.int32)]
    if prompt is not None:
        keys = [prompt.k[:, None], prompt.v[:, None], flat(prompt_mask, prompt.k).astype(jnp.int32), *keys]
    call = functools.partial(_call, cap)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        specs = _specs(mesh, q, keys)
        call = jax.shard_map(call, in_specs=specs, out_specs=specs[0], check_vma=False)
    return call(q, live, *keys).reshape(shape)


def _specs(mesh, q, keys):
    """How queries, live and keys lie on a mesh: prompts over its batch axes, groups over "tensor", where they divide."""
    b = BATCH_AXES if q.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0 else None
    g = "tensor" if q.shape[2] % mesh.shape["tensor"] == 0 else None

    def of_keys(a):
        return P(b if a.shape[0] > 1 else None, None, None, *([g] if a.ndim == 5 else []))

    return P(b, None, g), P(), *map(of_keys, keys)


def _call(cap, q, live, *keys):
    """[B, N, G, R, C] for queries of that shape; a program for each (sequence, group).

    `keys` are sets of three: keys and values [B, N or 1, S, G, C], and which are seen, [B or 1, N or 1, S]. Of the last set
    there are as many as `live` [1] says.
    """
    batch, candidates, groups, rows, width = q.shape

    def spec(a):

        def place(g, n, b):
            return (b if a.shape[0] > 1 else 0, n if a.shape[1] > 1 else 0)

        if a.ndim == 3:
            return pl.BlockSpec((None, None, a.shape[2]), lambda g, n, b: (*place(g, n, b), 0))
        return pl.BlockSpec((None, None, a.shape[2], None, width), lambda g, n, b: (*place(g, n, b), 0, g, 0))

    query = pl.BlockSpec((None, None, None, rows, width), lambda g, n, b: (b, n, g, 0, 0))
    return pl.pallas_call(
        functools.partial(_kernel, cap, rows),
        grid=(groups, candidates, batch),
        in_specs=[query, pl.BlockSpec((1,), lambda g, n, b: (0,)), *map(spec, keys)],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=jax.default_backend() == "cpu",
        name="attend_one",
    )(q, live, *keys)


def _kernel(cap, rows, q_ref, live_ref, *refs):
    *keys, out_ref = refs
    filled = max(ROWS, pl.next_power_of_2(rows))
    of_group = (jnp.arange(filled) < rows)[:, None]
    q = triton.load(q_ref.at[pl.ds(0, filled), :], mask=of_group, other=0.0)
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jax.lax.dot_general, precision=exact, preferred_element_type=jnp.float32)

    def walk(k_ref, v_ref, mask_ref, upto, carry):
        length = k_ref.shape[0]

        def block(i, carry):
            top, total, out = carry
            index, rows_of = i * BLOCK + jnp.arange(BLOCK), pl.ds(i * BLOCK, BLOCK)
            inside = index < length
            k = triton.load(k_ref.at[rows_of, :], mask=inside[:, None], other=0.0)
            visible = triton.load(mask_ref.at[rows_of], mask=inside, other=0) != 0
            scores = dot(q, k, (((1,), (1,)), ((), ())))  # [rows, BLOCK]
            scores = jnp.where(visible[None], softcap(scores, cap), MASKED)
            higher = jnp.maximum(top, jnp.max(scores, axis=1))
            weights, decay = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
            v = triton.load(v_ref.at[rows_of, :], mask=inside[:, None], other=0.0)
            new = dot(weights.astype(v.dtype), v, (((1,), (0,)), ((), ())))
            return higher, total * decay + jnp.sum(weights, axis=1), out * decay[:, None] + new

        return jax.lax.fori_loop(0, pl.cdiv(upto, BLOCK), block, carry)

    blank = jnp.zeros((filled,), jnp.float32)
    carry = (blank + MASKED, blank, jnp.zeros((filled, q.shape[1]), jnp.float32))
    for first in range(0, len(keys), 3):
        k_ref = keys[first]
        carry = walk(*keys[first : first + 3], live_ref[0] if first + 3 == len(keys) else k_ref.shape[0], carry)
    _, total, out = carry
    triton.store(out_ref.at[pl.ds(0, filled), :], (out / total[:, None]).astype(out_ref.dtype), mask=of_group)
