"""A random part of a half-batch's prompts, which stands for all of them in an estimate of the hypergradient.

Letters: P prompts, C of them taken, G groups. Prompts are taken by strata: from each of G = gcd(P, C) groups of neighbours
equally many. Each prompt is taken with chance C / P, so that P / C times a sum over those taken has the expectation of the
sum over all. A group lies on a single device where C divides over the devices, so that no row moves to another.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Subset(NamedTuple):
    """Places in their groups of prompts that are taken [G, C / G] and of those that are left [G, (P - C) / G], int32."""

    taken: jax.Array
    left: jax.Array

    @property
    def scale(self) -> float:
        """P / C: what a sum over those taken is multiplied by."""
        return (self.taken.shape[1] + self.left.shape[1]) / self.taken.shape[1]


def size(prompts: int, fraction: float) -> int:
    """C, the number of prompts that a fraction of P is.

    Raises:
      ValueError: it is none, more than all, or not whole.
    """
    taken = round(fraction * prompts)
    if not (1 <= taken <= prompts and math.isclose(taken, fraction * prompts, rel_tol=1e-6)):
        raise ValueError(f"{fraction} of {prompts} prompts is not a whole number of them from 1 to {prompts}.")
    return taken


def draw(key: jax.Array, prompts: int, fraction: float) -> Subset:
    """A random Subset of P prompts: a function of the key and these numbers alone, whatever the devices.

    Args:
      key: typed key.
      prompts: P.
      fraction: C / P, as `size` takes it.
    """
    taken = size(prompts, fraction)
    groups = math.gcd(prompts, taken)
    order = jnp.argsort(jax.random.uniform(key, (groups, prompts // groups)), axis=1).astype(jnp.int32)
    return Subset(order[:, : taken // groups], order[:, taken // groups :])


def pick(rows: PyTree, places: jax.Array) -> PyTree:
    """[P, ...] to the rows at places [G, c] of their groups, [G · c, ...]."""
    return jax.tree.map(functools.partial(_pick_leaf, places), rows)


def pick_back(rows: PyTree, places: jax.Array) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`pick`, and its transpose: [G · c, ...] to [P, ...], zero where no row was picked. The rows are of real numbers."""
    picked, transposed = jax.vjp(functools.partial(pick, places=places), rows)

    def put_back(part: PyTree) -> PyTree:
        return transposed(part)[0]

    return picked, put_back


def _pick_leaf(places: jax.Array, x: jax.Array) -> jax.Array:
    grouped = x.reshape(places.shape[0], -1, *x.shape[1:])
    return jax.vmap(_at)(grouped, places).reshape(-1, *x.shape[1:])


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
    return x.at[places].get(mode="promise_in_bounds", unique_indices=True)
