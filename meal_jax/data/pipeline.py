"""Batches of prompts as a pure function of the seed and the step, so that a resumed run sees what it would have seen.

Letters: R prompt rows, B prompts a batch.
"""

from __future__ import annotations

import functools

import numpy as np

from meal_jax.meal.step import Batch
from meal_jax.tasks.task import Prompts


def batch_at(prompts: Prompts, step: int, batch_size: int, seed: int) -> Batch:
    """The batch of a step, NumPy.

    An epoch is R // B batches of a permutation of the rows drawn by (seed, epoch); the rows left over sit that epoch
    out, so no row is twice in a batch.

    Raises:
      ValueError: fewer rows than batch_size.
    """
    rows = len(prompts.id)
    if rows < batch_size:
        raise ValueError(f"{rows} prompts cannot fill a batch of {batch_size}: lower config.batch_size or add prompts.")
    epoch, at = divmod(int(step), rows // batch_size)
    index = _permutation(rows, seed, epoch)[at * batch_size : (at + 1) * batch_size]
    return Batch(*(field[index] for field in prompts))


@functools.lru_cache(maxsize=4)  # an epoch's batches share it; resuming mid-epoch draws it again, the same
def _permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
