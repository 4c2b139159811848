"""Rows whose responses have ended leave the batch of a rollout, and their results are put back in place at the end.

A rollout's rows are cut into groups of neighbouring prompts, one for each part that a mesh splits the batch into. As soon as
few enough rows of every group are live, each group keeps only those, each with a copy of its prompt's keys and values. The
index is within a group, so no row moves between devices.

Letters: B prompts, N candidates, U groups, R rows that a group keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.models.policy import Prefilled
from meal_jax.runtime.sharding import BATCH_AXES

PyTree = Any
# Row counts of a group. On a CPU products and norms of fewer rows, or of other multiples, round differently
# (docs/performance.md); they would hardly be faster either.
LEAST, STRIDE = 8, 4


class Rows(NamedTuple):
    """What a decoded token needs of its row, besides the cache.

    Attributes:
      prompts: for each model, B prefilled prompts.
      w: [B, N, K] preferences.
      keys: [B, N] typed keys.
      scales: [B, N, I], the models' weights in a mixture; None for one model.
      limits: [B, N] int32, maximum tokens of each response; None where all have `max_new`.
    """

    prompts: tuple[Prefilled, ...]
    w: jax.Array
    keys: jax.Array
    scales: jax.Array | None = None
    limits: jax.Array | None = None


def split_groups(batch: int) -> int:
    """U: the parts that the current mesh splits a batch of B prompts into; 1 without a mesh, or where they do not divide B."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return parts if batch % parts == 0 else 1


def ladder(rows: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The row counts of a group, descending, for shares of its `rows` rows: multiples of STRIDE from LEAST on."""
    sizes = {max(LEAST, STRIDE * math.ceil(rows * share / STRIDE)) for share in shares}
    return tuple(sorted((size for size in sizes if size < rows), reverse=True))


def filled(unembed: Callable[[jax.Array], jax.Array], hidden: jax.Array, groups: int, rows: int) -> jax.Array:
    """unembed(hidden) of hidden [U · R, 1, D], computed on groups filled up with zeros to `rows` rows.

    A CPU's product with the table rounds differently with fewer rows, so this one keeps the shape that it has with all rows.
    """
    lead = hidden.shape[:2]
    if lead[0] * lead[1] == groups * rows:
        return unembed(hidden)
    grouped = hidden.reshape(groups, -1, hidden.shape[-1])
    kept = grouped.shape[1]
    logits = unembed(jnp.pad(grouped, ((0, 0), (0, rows - kept), (0, 0))))
    return logits[:, :kept].reshape(*lead, -1)


def live_rows(live: jax.Array, groups: int) -> jax.Array:
    """The number of live rows, bool [B, N], in the group that has the most."""
    return jnp.max(jnp.sum(live.reshape(groups, -1), axis=1))


def choose(live: jax.Array, groups: int, size: int) -> jax.Array:
    """Indices [U, R] of R = `size` rows of each group of live [B, N]: all live ones, in their order, then ended ones."""
    return jnp.argsort(~live.reshape(groups, -1), axis=1, stable=True)[:, :size]


def take(tree: PyTree, index: jax.Array, axis: int = 0) -> PyTree:
    """The rows at `index` [U, R] of leaves [..., B, N, ...], with B at `axis`, as [..., U · R, 1, ...]."""

    def pick(a: jax.Array) -> jax.Array:
        lead, rest = a.shape[:axis], a.shape[axis + 2 :]
        rows = _pick(a.reshape(*lead, index.shape[0], -1, *rest), index, axis)
        return rows.reshape(*lead, index.size, 1, *rest)

    return jax.tree.map(pick, tree)


def take_prompts(prompt: Prefilled, index: jax.Array, candidates: int) -> Prefilled:
    """The prompts of the rows at `index` [U, R], a copy for each: B prompts become U · R."""
    which = index // candidates  # within the group

    def pick(a: jax.Array, axis: int = 0) -> jax.Array:
        lead, rest = a.shape[:axis], a.shape[axis + 1 :]
        return _pick(a.reshape(*lead, index.shape[0], -1, *rest), which, axis).reshape(*lead, index.size, *rest)

    kv = jax.tree.map(lambda a: pick(a, 1), prompt.kv)
    return Prefilled(kv, *(pick(a) for a in prompt[1:]))


def take_rows(rows: Rows, index: jax.Array) -> Rows:
    """The rows at `index` [U, R], as U · R prompts of one candidate."""
    prompts = tuple(take_prompts(prompt, index, rows.w.shape[1]) for prompt in rows.prompts)
    return Rows(prompts, *take(tuple(rows[1:]), index))


def put_back(tree: PyTree, kept: PyTree, index: jax.Array) -> PyTree:
    """Leaves [B, N, ...] with those of `kept` [U · R, 1, ...] written over the rows at `index` [U, R]."""

    def write(a: jax.Array, b: jax.Array) -> jax.Array:
        grouped = a.reshape(index.shape[0], -1, *a.shape[2:])
        new = b.reshape(*index.shape, *a.shape[2:])
        return jax.vmap(lambda old, i, value: old.at[i].set(value))(grouped, index, new).reshape(a.shape)

    return jax.tree.map(write, tree, kept)


def _pick(a: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Of a [..., U, rows, ...], with U at `axis`, the rows at index [U, R]."""
    return jax.vmap(lambda b, i: jnp.take(b, i, axis=axis), in_axes=(axis, 0), out_axes=axis)(a, index)
