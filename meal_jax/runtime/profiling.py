"""Where a run's time and memory go: metrics of every step, and a profiler's trace of a few.

    time/step      seconds of a step: from the end of the step before to its own end, evaluations and checkpoints in
                   between left out
    time/device    seconds of it in which the step's programs were on the devices; where it compiles, compiling too
    time/idle      the share of it in which they were not, because the host was late: with the batch, with the next call or
                   with text rewards. Reward models that read text run on the devices then, so with them it is an upper bound
    time/rollout, time/score, time/update
                   seconds on the devices of each, where the step is three programs: with config.timed, or where rewards
                   read text
    time/text_rewards
                   seconds in which the host scored texts
    time/data_wait share of the host's time spent waiting for the batch: harmless while the devices are busy
    time/compile   seconds in XLA's compiler, or reading its cache, while the step was called
    memory/in_use_bytes, memory/peak_bytes
                   of the fullest of this process's devices, where the platform tells (TPU and GPU do, the CPU does not)
    memory/host_bytes
                   of this process in the host's memory

The loop never waits for a device to know these. A thread waits in its place, for one program after another, and notes when
each has ended. Times are the host's clock, good to a millisecond or so.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
Run = Callable[..., Any]  # (name, program, *arguments) → what the program returns


class Started(NamedTuple):
    """A program that was started: its name, when it was called, and when its results were there."""

    name: str
    at: float
    ended: Future


class Step(NamedTuple):
    """What a step started, the moment before which nothing counts, and seconds of compilation."""

    programs: list[Started]
    floor: float
    compiled: float


def untimed(name: str, program: Callable, *arguments: Any) -> Any:
    """Calls a program: what stands in for `Stopwatch.run` where nobody asks for times."""
    return program(*arguments)


class Stopwatch:
    """Times the programs of steps without waiting for them; made by `stopwatch`."""

    def __init__(self):
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._ended = self._floor = time.perf_counter()
        self._programs, self._compiled = [], 0.0

    def run(self, name: str, program: Callable, *arguments: Any) -> Any:
        """Calls a jitted program, and returns what it returns. The last array of that must not be donated later."""
        started = Started(name, time.perf_counter(), Future())
        out = program(*arguments)
        self._programs.append(started)
        self._waiting.put((jax.tree.leaves(out)[-1], started.ended))
        return out

    def skip(self) -> None:
        """The time up to now is no step's: an evaluation or a checkpoint took it, and all programs before it have ended."""
        self._floor, self._compiled = time.perf_counter(), 0.0

    def take(self) -> Step:
        """Closes a step, to be given to `times` once its programs have ended."""
        step = Step(self._programs, self._floor, self._compiled)
        self._programs, self._compiled = [], 0.0
        return step

    def times(self, step: Step) -> dict[str, float]:
        """The metrics of a step; waits for its programs. To be called for every step, in order."""
        out: dict[str, float] = {}
        began = ended = max(self._ended, step.floor)
        for name, at, end in step.programs:
            seconds = max(end.result() - max(at, ended), 0.0)  # the devices run one program after another
            out[f"time/{name}"] = out.get(f"time/{name}", 0.0) + seconds
            ended = max(end.result(), ended)
        self._ended, busy, whole = ended, sum(out.values()), ended - began
        idle = max(1 - busy / whole, 0.0) if whole > 0 else 0.0
        return out | {"time/step": whole, "time/device": busy, "time/idle": idle, "time/compile": step.compiled}

    def _count(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            self._compiled += seconds

    def _wait(self) -> None:
        while (item := self._waiting.get()) is not None:
            array, ended = item
            with contextlib.suppress(Exception):  # who reads the results is told of the failure
                jax.block_until_ready(array)
            ended.set_result(time.perf_counter())
            del item, array  # else it would be held until the next program is started


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """A Stopwatch and its thread."""
    watch = Stopwatch()
    # A daemon, and not joined for long: it may wait for a device that never answers, and must not keep the process.
    thread = threading.Thread(target=watch._wait, name="stopwatch", daemon=True)
    thread.start()
    jax.monitoring.register_event_duration_secs_listener(watch._count)
    try:
        yield watch
    finally:
        jax.monitoring.unregister_event_duration_listener(watch._count)
        watch._waiting.put(None)
        thread.join(timeout=1.0)


@contextlib.contextmanager
def trace(steps: Sequence[int], directory: str | os.PathLike) -> Iterator[Callable[[int], None]]:
    """Lets the profiler trace some steps.

    View it with `tensorboard --logdir` (and its profile plugin) or in Perfetto. The parts of a step are named rollout, score
    and update.

    Args:
      steps: (first, last), or () for none.
      directory: where the trace is written; several processes, who may share a host, have a folder in it each.

    Yields:
      A function to be called with each step's number before it. The trace ends two steps after the last, when that is known
      to have ended; writing it delays that step.
    """
    first, last = steps or (None, None)
    running, directory = False, Path(directory)
    if jax.process_count() > 1:
        directory = directory / f"process_{jax.process_index()}"

    def at_step(at: int) -> None:
        nonlocal running
        if running and at > last + 1:
            jax.profiler.stop_trace()
            running = False
        elif not running and first is not None and first <= at <= last:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # of calls in Python there are so many that they would slow the host
            jax.profiler.start_trace(directory, profiler_options=options)
            running = True

    try:
        yield at_step
    finally:
        if running:
            jax.profiler.stop_trace()


def scoped(name: str, function: Callable) -> Callable:
    """The function, with a name that its program, or its part of a program, has in traces."""

    def named(*arguments):
        with jax.named_scope(name):
            return function(*arguments)

    named.__name__ = name
    return named


def memory() -> dict[str, float]:
    """The metrics `memory/…`: those of them that this platform tells."""
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    out = {}
    for name, key in (("in_use", "bytes_in_use"), ("peak", "peak_bytes_in_use")):
        values = [stats[key] for stats in found if key in stats]
        if values:
            out[f"memory/{name}_bytes"] = float(max(values))
    with contextlib.suppress(OSError):  # Linux has the file
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        out["memory/host_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    return out
