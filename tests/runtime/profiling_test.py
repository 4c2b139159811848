import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from meal_jax.methods import METHODS
from meal_jax.runtime import profiling


class Running:
    """What a program returns before it has ended; `jax.block_until_ready` asks it as it asks an array."""

    def __init__(self, seconds=0.0):
        self.done = threading.Event()
        self._end = threading.Timer(seconds, self.done.set)
        self._end.start()

    def block_until_ready(self):
        assert self.done.wait(10)
        return self


def test_a_step_is_its_programs_and_the_gaps_that_the_host_left_between_them():
    with profiling.stopwatch() as watch:
        time.sleep(0.1)  # an evaluation
        watch.skip()
        time.sleep(0.1)  # late with the batch
        rolled = watch.run("rollout", Running, 0.2)
        assert not rolled.done.is_set()  # nobody waited
        watch.run("score", Running, 0.3)  # called at once, so it began when the one before ended
        time.sleep(0.5)
        watch.run("update", Running, 0.1)
        first = watch.take()
        watch.run("device", Running, 0.3)  # the next step, called before the end of this one
        second = watch.take()
        result = watch.times(first)
        assert result["time/rollout"] == pytest.approx(0.2, abs=0.05)
        assert result["time/score"] == pytest.approx(0.1, abs=0.05)
        assert result["time/update"] == pytest.approx(0.1, abs=0.05)
        assert result["time/device"] == pytest.approx(0.4, abs=0.1)
        assert result["time/step"] == pytest.approx(0.7, abs=0.1)
        assert result["time/idle"] == pytest.approx(0.3 / 0.7, abs=0.1)
        after = watch.times(second)
        assert after["time/step"] == after["time/device"] == pytest.approx(0.2, abs=0.05) and after["time/idle"] == 0


def test_a_checkpoint_between_two_steps_is_in_neither():
    with profiling.stopwatch() as watch:
        watch.run("device", Running, 0.1)
        watch.times(watch.take())
        time.sleep(0.3)
        watch.skip()
        watch.run("device", Running, 0.1)
        result = watch.times(watch.take())
        assert result["time/step"] == pytest.approx(0.1, abs=0.05) and result["time/idle"] < 0.3


def test_compilation_is_counted_at_the_step_that_compiled_and_a_failure_is_its_readers():
    def fails():
        class Failed:
            def block_until_ready(self):
                raise RuntimeError("of the device")

        return Failed()

    program = jax.jit(lambda x: jnp.sin(x) @ x)
    with profiling.stopwatch() as watch:
        for compiled in (True, False):
            watch.run("device", program, jnp.ones((7, 7)))
            result = watch.times(watch.take())
            assert (0 < result["time/compile"] < 60) == compiled
        watch.run("device", fails)
        assert watch.times(watch.take())["time/step"] >= 0
    jax.jit(lambda x: x + 7)(jnp.ones(3))
    assert watch.take().compiled == 0  # it does not listen any more


def test_the_threads_end():
    with profiling.stopwatch():
        assert any(thread.name == "stopwatch" for thread in threading.enumerate())
    assert not any(thread.name == "stopwatch" for thread in threading.enumerate())


@pytest.mark.parametrize(("steps", "ran"), [((), []), ((2, 3), [2, 3, 4]), ((0, 0), [0, 1]), ((5, 5), [5])])
def test_a_trace_begins_at_its_first_step_and_ends_when_its_last_has_ended(tmp_path, monkeypatch, steps, ran):
    on, visited = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path, profiler_options: on.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", on.clear)
    with profiling.trace(steps, tmp_path) as before_step:
        for index in range(6):
            before_step(index)
            visited += [index] * len(on)
    assert visited == ran and not on


def test_memory_is_what_the_platform_tells(monkeypatch):
    local = profiling.memory()
    assert 2**20 < local["memory/host_bytes"] < 2**40

    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    full = Device({"bytes_in_use": 3, "peak_bytes_in_use": 9, "bytes_limit": 10})
    monkeypatch.setattr(jax, "local_devices", lambda: [full, Device({"bytes_in_use": 5}), Device(None)])
    result = profiling.memory()
    assert (result["memory/in_use_bytes"], result["memory/peak_bytes"]) == (5, 9)


def test_the_parts_of_a_step_have_their_names_in_its_program():
    method = METHODS["meal"]._replace(
        rollout=lambda setup, state, frozen, batch: SimpleNamespace(responses=jnp.sin(batch)),
        score=lambda setup, frozen, batch, responses: jnp.cos(responses),
        update=lambda setup, state, frozen, batch, rolled, scores: jnp.tanh(scores),
    )
    text = jax.jit(lambda x: method.step(None, None, None, x)).lower(jnp.ones(3)).as_text(debug_info=True)
    assert all(f"{part}/{what}" in text for part, what in (("rollout", "sin"), ("score", "cos"), ("update", "tanh")))


@pytest.mark.parametrize(
    ("reports", "seconds"),
    [
        ([(0, 1), (2, 3)], 2),
        ([(1, 2), (0, 3)], 3),  # an inner function's trace is reported before the outer one's
        ([(0, 1), (2, 3), (4, 5), (1.5, 6)], 5.5),
        ([(0, 2), (1, 3)], 3),  # of two threads
    ],
)
def test_time_that_reports_of_compilation_share_counts_once(reports, seconds):
    spans = []
    for start, end in reports:
        spans = profiling.joined(spans, start, end)
    assert sum(end - start for start, end in spans) == seconds


def test_a_first_call_is_compilation_and_a_second_is_not():
    program = jax.jit(lambda x: jnp.sin(x) @ x)
    with profiling.stopwatch() as watch:
        began = time.perf_counter()
        program(jnp.ones((7, 7))).block_until_ready()
        spent, first = time.perf_counter() - began, watch.compiling()
        program(jnp.ones((7, 7))).block_until_ready()
        assert 0 < first <= spent and watch.compiling() == first
