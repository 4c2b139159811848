"""Batches are a function of (seed, step): epochs are permutations, and a resumed run sees what it would have seen."""

import numpy as np
import pytest

from meal_jax.data import pipeline
from meal_jax.data.pipeline import batch_at
from meal_jax.tasks.task import Prompts

ROWS, BATCH = 11, 4
PROMPTS = Prompts(
    np.arange(ROWS * 3, dtype=np.int32).reshape(ROWS, 3),
    np.ones((ROWS, 3), bool),
    np.arange(100, 100 + ROWS, dtype=np.int32),
)


def ids(steps, seed=0):
    return [batch_at(PROMPTS, step, BATCH, seed).id.tolist() for step in steps]


def test_an_epoch_has_each_row_at_most_once():
    for epoch in range(5):
        seen = np.ravel(ids([2 * epoch, 2 * epoch + 1]))  # 11 // 4 batches
        assert len(set(seen)) == 2 * BATCH
    assert len(set(np.ravel(ids(range(40))))) == ROWS  # the rows left over differ from epoch to epoch


def test_whole_epochs_have_each_row_once():
    even = Prompts(*(field[:8] for field in PROMPTS))
    seen = np.concatenate([batch_at(even, step, BATCH, 3).id for step in (6, 7)])
    assert sorted(seen) == list(range(100, 108))


def test_fields_stay_together():
    batch = batch_at(PROMPTS, 5, BATCH, 0)
    assert batch.tokens.shape == (BATCH, 3) and batch.mask.dtype == bool
    np.testing.assert_array_equal(batch.tokens, PROMPTS.tokens[batch.id - 100])


def test_resuming_gives_the_same_batches():
    before = ids(range(9))
    pipeline._permutation.cache_clear()
    assert ids(range(5, 9)) == before[5:]
    assert ids([7, 2, 7]) == [before[7], before[2], before[7]]


def test_seeds_and_epochs_differ():
    assert ids(range(4)) != ids(range(4), seed=1)
    assert ids([0, 1]) != ids([2, 3])


def test_too_few_rows():
    with pytest.raises(ValueError, match="11 prompts cannot fill a batch of 12"):
        batch_at(PROMPTS, 0, 12, 0)
