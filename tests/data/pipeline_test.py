"""Batches are a function of (seed, step): epochs are permutations, and a resumed run sees what it would have seen."""

import os
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from meal_jax.data import chat as chats
from meal_jax.data import pipeline
from meal_jax.data.pipeline import batch_at
from meal_jax.data.prompts import Prompts

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
        visited = np.ravel(ids([2 * epoch, 2 * epoch + 1]))  # 11 // 4 batches
        assert len(set(visited)) == 2 * BATCH
    assert len(set(np.ravel(ids(range(40))))) == ROWS  # the rows left over differ from epoch to epoch


def test_whole_epochs_have_each_row_once():
    even = Prompts(*(field[:8] for field in PROMPTS))
    visited = np.concatenate([batch_at(even, step, BATCH, 3).id for step in (6, 7)])
    assert sorted(visited) == list(range(100, 108))


def test_fields_stay_together():
    batch = batch_at(PROMPTS, 5, BATCH, 0)
    assert batch.tokens.shape == (BATCH, 3) and batch.mask.dtype == bool
    np.testing.assert_array_equal(batch.tokens, PROMPTS.tokens[batch.id - 100])


def test_resuming_gives_the_same_batches():
    before = ids(range(9))
    assert ids(range(5, 9)) == before[5:]
    assert ids([7, 2, 7]) == [before[7], before[2], before[7]]


def test_seeds_and_epochs_differ():
    assert ids(range(4)) != ids(range(4), seed=1)
    assert ids([0, 1]) != ids([2, 3])


def test_too_few_rows():
    with pytest.raises(ValueError, match="11 prompts cannot fill a batch of 12"):
        batch_at(PROMPTS, 0, 12, 0)


LENGTHS = (np.arange(40) * 7) % 12 + 1
MIXED = chats.pad_left([[5] * n for n in LENGTHS], 12, pad=0)  # 40 rows of 1 to 12 tokens


def test_without_buckets_there_is_one_length():
    assert {batch_at(MIXED, step, 4, 0).tokens.shape for step in range(20)} == {(4, 12)}


def test_buckets_bound_the_shapes_and_hold_every_token():
    shapes, visited = set(), []
    for step in range(10):
        batch = batch_at(MIXED, step, 4, 0, buckets=(4, 8))
        shapes.add(batch.tokens.shape[1])
        np.testing.assert_array_equal(batch.mask.sum(axis=1), LENGTHS[batch.id])
        assert batch.tokens[batch.mask].tolist() == [5] * int(batch.mask.sum()) and batch.mask[:, -1].all()
        visited += batch.id.tolist()
    assert shapes == {4, 8, 12} and sorted(visited) == list(range(40))  # an epoch still has each row once


def test_rows_left_over_in_a_bucket_go_on_to_the_next():
    lengths = np.array([4] * 5 + [8] * 2 + [12] * 4)  # 5 = 4 + 1, 1 + 2 = 3, 3 + 4 = 4 + 3
    visits = np.zeros(len(lengths), int)
    for epoch in range(200):
        result = pipeline.order(lengths, 4, 0, epoch)
        assert result.shape == (2, 4) and len(set(result.ravel())) == 8
        short = int((lengths[result] == 4).sum())
        assert (np.max(lengths[result], axis=1) == 4).sum() == short // 4  # as many batches of the shortest as it fills
        visits[result.ravel()] += 1
    np.testing.assert_allclose(
        visits, 200 * 8 / 11, atol=25
    )  # the three left out differ, the longest among them or not
    firsts = {int(np.max(lengths[pipeline.order(lengths, 4, 0, e)[0]])) for e in range(20)}
    assert firsts == {4, 8, 12}  # lengths come in no fixed order


def test_a_few_long_rows_are_trained_on_too():
    lengths = np.array([128] * 995 + [512] * 8)
    seen = np.zeros(len(lengths), int)
    for epoch in range(20):
        seen[pipeline.order(lengths, 16, 0, epoch).ravel()] += 1
    assert seen.max() <= 20 and seen[-8:].min() >= 17


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("buckets", [(), (4, 8)])
def test_devices_change_neither_rows_nor_order(devices, buckets):
    from meal_jax.runtime import sharding

    mesh = sharding.make_mesh(devices, devices=jax.devices()[:devices])
    for step in (0, 3, 11):
        plain = batch_at(MIXED, step, 4, 1, buckets)
        placed = batch_at(MIXED, step, 4, 1, buckets, sharding.batch_sharding(mesh))
        for first, other in zip(plain, placed, strict=True):
            np.testing.assert_array_equal(first, np.asarray(other))
            assert other.dtype == first.dtype and other.addressable_shards[0].data.shape[0] == 4 // devices


PROCESS = """
import sys
import jax
import numpy as np
address, processes, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 4 // processes)
if processes > 1:
    jax.distributed.initialize(address, processes, number)
from meal_jax.data import chat, pipeline
from meal_jax.runtime import sharding
prompts = chat.pad_left([[5 + n] * (n % 12 + 1) for n in range(40)], 12, pad=0)
placed = sharding.batch_sharding(sharding.make_mesh(4))
assert jax.process_count() == processes and jax.device_count() == 4
for step in (0, 7, 13):
    batch = pipeline.batch_at(prompts, step, 8, 2, (4, 8), placed)
    shards = sorted(batch.id.addressable_shards, key=lambda shard: shard.index[0].start)
    assert sum(shard.data.size for shard in shards) == 8 // processes  # its own rows only
    print("ids", step, shards[0].index[0].start, *np.concatenate([shard.data for shard in shards]), flush=True)
"""


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_have_the_same_rows_in_the_same_order(processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(processes), str(i)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    result = {}
    for process in running:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
        for line in out.splitlines():
            if line.startswith("ids "):
                step, start, *ids = map(int, line.split()[1:])
                result.setdefault(step, {})[start] = ids
    rows = chats.pad_left([[5 + n] * (n % 12 + 1) for n in range(40)], 12, pad=0)
    for step in (0, 7, 13):
        whole = [i for _, ids in sorted(result[step].items()) for i in ids]
        assert whole == batch_at(rows, step, 8, 2, (4, 8)).id.tolist()


def test_prefetch_gives_values_in_order_and_works_ahead():
    made = []

    def make(number):
        made.append(number)
        return number * number

    with pipeline.prefetch(make, 3, 9, ahead=2) as get:
        assert get().value == 9
        deadline = time.monotonic() + 10
        while made != [3, 4, 5, 6] and time.monotonic() < deadline:  # two held, one waiting to be put
            time.sleep(0.01)
        time.sleep(0.2)
        assert made == [3, 4, 5, 6]
        assert [get().value for _ in range(5)] == [16, 25, 36, 49, 64]
        with pytest.raises(IndexError, match="end at 8"):
            get()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_raises_where_the_value_is_asked_for_and_ends_its_thread():
    def make(number):
        if number == 2:
            raise ValueError("row 2 is bad")
        return number

    with pytest.raises(ValueError, match="row 2 is bad"), pipeline.prefetch(make, 0, 5) as get:
        assert [get().value, get().value] == [0, 1]
        with pytest.raises(ValueError, match="row 2 is bad"):
            get()
        get()
    with pytest.raises(KeyError), pipeline.prefetch(lambda number: number, 0, 1000) as get:
        raise KeyError("of the loop")
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_tells_the_share_of_time_spent_waiting(monkeypatch):
    clock = iter([0.0, 6.0, 10.0, 10.0, 20.0, 30.0, 30.0])  # begun; asked for and given, three times
    monkeypatch.setattr(pipeline, "time", types.SimpleNamespace(perf_counter=clock.__next__))
    with pipeline.prefetch(lambda number: number, 0, 3) as get:
        assert [get().wait for _ in range(3)] == [0.4, 1.0, 0.0]
