"""Batches of prompts as a pure function of the seed and the step, made and placed while the step before runs.

Which rows a step gets depends on (seed, step) alone, so the iterator's state is the step, which is in every checkpoint: a
resumed run sees what it would have seen, on any number of devices and processes.

Letters: R prompt rows, B prompts a batch, S prompt tokens.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from meal_jax.data.prompts import Prompts
from meal_jax.meal.step import Batch


def batch_at(
    prompts: Prompts,
    step: int,
    batch_size: int,
    seed: int,
    buckets: Sequence[int] = (),
    sharding: jax.sharding.NamedSharding | None = None,
) -> Batch:
    """The batch of a step.

    An epoch is R // B batches of a permutation of the rows drawn by (seed, epoch); the rows left over sit that epoch
    out, so no row is twice in a batch. With buckets, a batch's rows are of one bucket, see `order`.

    Args:
      prompts: R rows; every process has them all.
      step: from 0.
      batch_size: B, of all processes together.
      seed: of the order.
      buckets: lengths that a batch's S may have, besides that of `prompts`; () = that alone.
      sharding: of the leading dimension; None gives NumPy arrays.

    Returns:
      NumPy [B, S], or global arrays of which this process made only the rows that lie on its devices.

    Raises:
      ValueError: fewer rows than batch_size.
    """
    index, cut = index_at(prompts.mask, step, batch_size, seed, buckets)
    return Batch(*take((prompts.tokens[:, cut:], prompts.mask[:, cut:], prompts.id), index, sharding))


def index_at(
    mask: np.ndarray, step: int, batch_size: int, seed: int, buckets: Sequence[int] = ()
) -> tuple[np.ndarray, int]:
    """The rows [B] of a step's batch, and how many columns on the left are padding to all of them and can go.

    Args:
      mask: [R, S] of all prompts.
      step, batch_size, seed, buckets: as in `batch_at`, which also says what is raised.
    """
    rows, width = mask.shape
    if rows < batch_size:
        raise ValueError(f"{rows} prompts cannot fill a batch of {batch_size}: lower config.batch_size or add prompts.")
    epoch, at = divmod(int(step), rows // batch_size)
    lengths = bucketed(mask, buckets)
    index = order(lengths, batch_size, seed, epoch)[at]
    return index, int(width - lengths[index].max())


def take(
    fields: Iterable[np.ndarray], index: np.ndarray, sharding: jax.sharding.NamedSharding | None = None
) -> list[Any]:
    """The rows `index` [B] of each field [R, …]; with a sharding, global arrays whose local rows alone are made here."""
    if sharding is None:
        return [field[index] for field in fields]
    # Asked for shard by shard, so it does not matter how the mesh lays the processes out.
    return [
        jax.make_array_from_callback(
            (len(index), *field.shape[1:]), sharding, lambda at, field=field: field[index[at[0]]]
        )
        for field in fields
    ]


def bucketed(mask: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The padded length [R] of each row of a mask [R, S]: the smallest of `buckets` that holds it, else S."""
    width = mask.shape[1]
    edges = np.array(sorted({length for length in buckets if length < width} | {width}))
    return edges[np.searchsorted(edges, mask.sum(axis=1))] if len(edges) > 1 else np.full(len(mask), width)


def order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of every batch of an epoch, [R // B, B].

    Rows of one bucket fill batches; those left over go on to the next longer bucket, and only the last bucket's sit out.
    Rows are permuted within a bucket and batches among each other, so the order of lengths is random too.

    Args:
      lengths: [R] padded length of each row; all equal is one bucket.
      batch_size: B.
      seed, epoch: of the permutations.
    """
    random = np.random.default_rng((seed, epoch))
    permuted = random.permutation(len(lengths))
    batches, left = [], permuted[:0]
    for length in np.unique(lengths):
        left = np.concatenate([left, permuted[lengths[permuted] == length]])
        full = len(left) // batch_size * batch_size
        batches.append(left[:full].reshape(-1, batch_size))
        left = left[full:]
    stacked = np.concatenate(batches)
    return stacked if len(batches) == 1 else stacked[random.permutation(len(stacked))]


class Fetched(NamedTuple):
    """What `prefetch` gives: the value, and the share of the time since it last gave one that was spent waiting for this."""

    value: Any
    wait: float


@contextlib.contextmanager
def prefetch(make: Callable[[int], Any], start: int, stop: int, ahead: int = 2) -> Iterator[Callable[[], Fetched]]:
    """Makes values `start` … `stop` - 1 in a thread, up to `ahead` of them before they are asked for.

    Args:
      make: from the number to the value, say a batch on its devices.
      start, stop: the range.
      ahead: values held at most.

    Yields:
      A function that returns the next value, and raises what `make` raised for it. The thread ends with the context.
    """
    ready: queue.Queue = queue.Queue(ahead)
    ended = threading.Event()

    def put(item) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        error: BaseException = IndexError(f"The values end at {stop - 1}.")
        try:
            for number in range(start, stop):
                put((make(number), None))
                if ended.is_set():
                    return
        except BaseException as failure:  # raised in the thread that asks
            error = failure
        while not ended.is_set():
            put((None, error))

    given = time.perf_counter()

    def get() -> Fetched:
        nonlocal given
        before, asked = given, time.perf_counter()
        value, error = ready.get()
        if error is not None:
            raise error
        given = time.perf_counter()
        return Fetched(value, (given - asked) / (given - before))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield get
    finally:
        ended.set()
        thread.join()
