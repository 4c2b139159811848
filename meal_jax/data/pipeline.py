"""Batches of prompts as a pure function of the seed and the step, made and placed during the step before.

The rows of a step depend on (seed, step) alone, so the iterator's state is the step, which is in every checkpoint. A resumed
run gets the same batches, on any number of devices and processes.

Letters: R prompt rows, B prompts per batch, S prompt tokens.
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

    An epoch is R // B batches of a permutation of the rows drawn by (seed, epoch). The remaining rows are not used in that
    epoch, so no row is twice in a batch. With buckets, the rows of a batch have one bucket, see `order`.

    Args:
      prompts: R rows; every process has them all.
      step: from 0.
      batch_size: B, of all processes together.
      seed: of the order.
      buckets: lengths that a batch's S may have besides that of `prompts`; () for none.
      sharding: of the leading dimension; None gives NumPy arrays.

    Returns:
      NumPy [B, S], or global arrays, of which this process made only the rows on its devices.

    Raises:
      ValueError: fewer rows than batch_size.
    """
    index, cut = index_at(prompts.mask, step, batch_size, seed, buckets)
    return Batch(*take((prompts.tokens[:, cut:], prompts.mask[:, cut:], prompts.id), index, sharding))


def index_at(
    mask: np.ndarray, step: int, batch_size: int, seed: int, buckets: Sequence[int] = ()
) -> tuple[np.ndarray, int]:
    """The rows [B] of a step's batch, and the number of columns on the left that are padding in all of them.

    Args:
      mask: [R, S] of all prompts.
      step, batch_size, seed, buckets: as in `batch_at`, as are the errors.
    """
    rows, width = mask.shape
    if rows < batch_size:
        raise ValueError(f"{rows} prompts cannot fill a batch of {batch_size}: lower config.batch_size or add prompts.")
    epoch, batch = divmod(int(step), rows // batch_size)
    lengths = bucketed(mask, buckets)
    index = order(lengths, batch_size, seed, epoch)[batch]
    return index, int(width - lengths[index].max())


def take(
    fields: Iterable[np.ndarray], index: np.ndarray, sharding: jax.sharding.NamedSharding | None = None
) -> list[Any]:
    """The rows `index` [B] of each field [R, …]; with a sharding, global arrays, of which only local rows are made here."""
    if sharding is None:
        return [field[index] for field in fields]
    # Made shard by shard, so the layout of the processes on the mesh does not matter.
    return [
        jax.make_array_from_callback(
            (len(index), *field.shape[1:]), sharding, lambda part, field=field: field[index[part[0]]]
        )
        for field in fields
    ]


def bucketed(mask: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """The padded length [R] of each row of a mask [R, S]: the smallest of `buckets` that is long enough, else S."""
    width = mask.shape[1]
    edges = np.array(sorted({length for length in buckets if length < width} | {width}))
    return edges[np.searchsorted(edges, mask.sum(axis=1))] if len(edges) > 1 else np.full(len(mask), width)


def order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of every batch of an epoch, [R // B, B].

    Where B does not divide R, other rows are left out in each epoch, whatever their length. Rows of one bucket fill batches;
    remaining rows go to the next longer bucket. Rows are permuted within a bucket, and the batches are permuted, so the order
    of lengths is random too.

    Args:
      lengths: [R] padded length of each row; if all are equal, there is one bucket.
      batch_size: B.
      seed, epoch: of the permutations.
    """
    random = np.random.default_rng((seed, epoch))
    permuted = random.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    batches, remaining = [], permuted[:0]
    for length in np.unique(lengths):
        remaining = np.concatenate([remaining, permuted[lengths[permuted] == length]])
        full = len(remaining) // batch_size * batch_size
        batches.append(remaining[:full].reshape(-1, batch_size))
        remaining = remaining[full:]
    stacked = np.concatenate(batches)
    return stacked if len(batches) == 1 else stacked[random.permutation(len(stacked))]


class Fetched(NamedTuple):
    """A value of `prefetch`, and the share of the time since the previous value that was spent waiting for this one."""

    value: Any
    wait: float


@contextlib.contextmanager
def prefetch(make: Callable[[int], Any], start: int, stop: int, ahead: int = 2) -> Iterator[Callable[[], Fetched]]:
    """Makes values `start` … `stop` - 1 in a thread, up to `ahead` of them in advance.

    Args:
      make: number to value, for example step to batch on its devices.
      start, stop: the range.
      ahead: max number of values held.

    Yields:
      A function that returns the next value, and raises what `make` raised for it. The thread ends with the context.
    """
    ready: queue.Queue = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        error: BaseException = IndexError(f"The values end at {stop - 1}.")
        try:
            for number in range(start, stop):
                put((make(number), None))
                if stopped.is_set():
                    return
        except BaseException as failure:  # raised in the consumer's thread
            error = failure
        while not stopped.is_set():
            put((None, error))

    previous_end = time.perf_counter()

    def get() -> Fetched:
        nonlocal previous_end
        previous, wait_start = previous_end, time.perf_counter()
        value, error = ready.get()
        if error is not None:
            raise error
        previous_end = time.perf_counter()
        return Fetched(value, (previous_end - wait_start) / (previous_end - previous))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield get
    finally:
        stopped.set()
        thread.join()
