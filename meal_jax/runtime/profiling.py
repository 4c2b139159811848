"""The time and memory of a run: metrics of every step, and a profiler's trace of some steps.

    time/step      seconds of a step: from the end of the previous step to its own end, without evaluations and checkpoints
                   in between
    time/device    seconds in which the step's programs ran on the devices, including compilation
    time/idle      share of the step in which no program ran, because the host was late: with the batch, with the next call or
                   with text rewards. Reward models that read text use the devices then, so with them it is an upper bound
    time/rollout, time/score, time/update
                   seconds of each on the devices, if the step is three programs: with config.timed, or if rewards read text
    time/text_rewards
                   seconds in which the host scored texts
    time/data_wait share of the host's time spent waiting for the batch: harmless while the devices are busy
    time/compile   seconds in XLA's compiler, or reading its cache, during the call of the step
    memory/in_use_bytes, memory/peak_bytes
                   of the fullest of this process's devices, if the platform reports it (TPU and GPU do, CPUs do not)
    memory/host_bytes
                   host memory of this process

The loop does not wait for the devices. A thread waits for one program after another and records when each has ended. Times
are by the host's clock, exact to about a millisecond.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
COMPILING = (  # what a first call does before its program runs; traces of inner functions are reported apart
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)
Run = Callable[..., Any]  # (name, program, *arguments) → the program's result


class Started(NamedTuple):
    """A started program: its name, the time of the call, and the time at which its results were ready."""

    name: str
    start: float
    end: Future


class Step(NamedTuple):
    """The programs that a step started, the time before which nothing counts, and seconds of compilation."""

    programs: list[Started]
    floor: float
    compiled: float


def untimed(name: str, program: Callable, *arguments: Any) -> Any:
    """Calls a program; replaces `Stopwatch.run` if no times are needed."""
    return program(*arguments)


class Stopwatch:
    """Times the programs of steps without waiting for them; made by `stopwatch`."""

    def __init__(self):
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._ended = self._floor = time.perf_counter()
        self._programs, self._compiled = [], 0.0
        self._spans: list[tuple[float, float]] = []

    def compiling(self) -> float:
        """Seconds spent tracing, lowering and compiling since the start; time that reports share counts once."""
        return sum(end - start for start, end in self._spans)

    def run(self, name: str, program: Callable, *arguments: Any) -> Any:
        """Calls a jitted program and returns its result, whose last array must not be donated later."""
        started = Started(name, time.perf_counter(), Future())
        out = program(*arguments)
        self._programs.append(started)
        self._waiting.put((jax.tree.leaves(out)[-1], started.end))
        return out

    def skip(self) -> None:
        """Excludes the time up to now, of an evaluation or a checkpoint; all programs before it have ended."""
        self._floor, self._compiled = time.perf_counter(), 0.0

    def take(self) -> Step:
        """Closes a step; pass the result to `times` once its programs have ended."""
        step = Step(self._programs, self._floor, self._compiled)
        self._programs, self._compiled = [], 0.0
        return step

    def times(self, step: Step) -> dict[str, float]:
        """The metrics of a step; waits for its programs. Call it for every step, in order."""
        out: dict[str, float] = {}
        began = ended = max(self._ended, step.floor)
        for name, start, end in step.programs:
            seconds = max(end.result() - max(start, ended), 0.0)  # the devices run one program after another
            out[f"time/{name}"] = out.get(f"time/{name}", 0.0) + seconds
            ended = max(end.result(), ended)
        self._ended, busy, total = ended, sum(out.values()), ended - began
        idle = max(1 - busy / total, 0.0) if total > 0 else 0.0
        return out | {"time/step": total, "time/device": busy, "time/idle": idle, "time/compile": step.compiled}

    def _count(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            self._compiled += seconds
        if event in COMPILING:
            self._spans = joined(self._spans, time.perf_counter() - seconds, time.perf_counter())

    def _wait(self) -> None:
        while (item := self._waiting.get()) is not None:
            array, ended = item
            with contextlib.suppress(Exception):  # the reader of the results gets the failure
                jax.block_until_ready(array)
            ended.set_result(time.perf_counter())
            del item, array  # else the array is held until the next program starts


def joined(spans: Sequence[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """Disjoint spans of time in order, and one more that ends after them: what it overlaps becomes part of it."""
    apart = [span for span in spans if span[1] < start]
    overlapping = [first for first, last in spans if last >= start]
    return [*apart, (min([start, *overlapping]), end)]


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """A Stopwatch and its thread."""
    watch = Stopwatch()
    # A daemon with a short join: it may wait for a device that never answers, and must not block the exit.
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
    """Traces some steps with the profiler.

    View it with `tensorboard --logdir` (and its profile plugin) or in Perfetto. The parts of a step are named rollout, score
    and update.

    Args:
      steps: (first, last), or () for none.
      directory: for the trace; with several processes, each has its own folder in it.

    Yields:
      A function to call with each step's number before the step. The trace ends two steps after the last traced one, which
      has ended by then; writing the trace delays that step.
    """
    first, last = steps or (None, None)
    running, directory = False, Path(directory)
    if jax.process_count() > 1:
        directory = directory / f"process_{jax.process_index()}"

    def before_step(step: int) -> None:
        nonlocal running
        if running and step > last + 1:
            jax.profiler.stop_trace()
            running = False
        elif not running and first is not None and first <= step <= last:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # tracing the many Python calls would slow the host
            jax.profiler.start_trace(directory, profiler_options=options)
            running = True

    try:
        yield before_step
    finally:
        if running:
            jax.profiler.stop_trace()


def scoped(name: str, function: Callable) -> Callable:
    """The function, with a name for its program, or its part of a program, in traces."""

    def named(*arguments):
        with jax.named_scope(name):
            return function(*arguments)

    named.__name__ = name
    return named


def memory() -> dict[str, float]:
    """The metrics `memory/…` that this platform reports."""
    reported = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    out = {}
    for name, key in (("in_use", "bytes_in_use"), ("peak", "peak_bytes_in_use")):
        values = [stats[key] for stats in reported if key in stats]
        if values:
            out[f"memory/{name}_bytes"] = float(max(values))
    with contextlib.suppress(OSError):  # Linux has the file
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        out["memory/host_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    return out


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes, and the platform."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions, "platform": platform.platform()}
