"""Trains runs in child processes, some at a time, each on one core's worth of threads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from meal_jax.study.runs import Run

STOPPED = 75  # exit status of a run that was told to stop and saved its state


class Outcome(NamedTuple):
    """How a run ended: "finished", "stopped" or "failed", its seconds, and of a failed one the last line that it wrote."""

    run: Run
    how: str
    seconds: float
    message: str = ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """A child's environment: one thread of computation, whatever --jobs is, so that results do not depend on it.

    NPROC is how XLA's CPU client is told its number of threads. On a GPU that children share, none takes all of the memory.
    What a child prints is written at once, so that the last line of its log is the last one said: why it failed.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    fixed = dict.fromkeys(threads, "1") | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, **fixed}


def train(
    runs: Sequence[Run], jobs: int, logs: Path, say: Callable[[str], None] = print, total: int | None = None
) -> list[Outcome]:
    """Trains runs in their order, `jobs` at a time; one that fails does not keep the others from being trained.

    SIGTERM and Ctrl-C are passed on: runs save their state and end, and those that have not begun do not begin.

    Args:
      runs: not finished yet.
      jobs: processes at a time.
      logs: directory for what runs print, VARIANT_SEED.log.
      say: takes a line of progress for each run that ends.
      total: runs of the whole table, for the count in these lines; the others are finished.

    Returns:
      Outcomes, in the order of `runs`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    total, outcomes = len(runs) if total is None else total, {}
    with _passing_on_signals() as children, ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_train_one, run, logs, children) for run in runs]
        for ended in as_completed(waiting):
            outcome = ended.result()
            outcomes[outcome.run.name] = outcome
            if outcome.how != "stopped" or outcome.seconds:
                done = total - len(runs) + len(outcomes)
                say(line(outcome, done, total, eta(runs, outcomes, jobs)))
    return [outcomes[run.name] for run in runs]


def line(outcome: Outcome, done: int, total: int, left: float) -> str:
    """A line of progress."""
    ended = f"[{done}/{total}] {outcome.run.name} {outcome.how} after {clock(outcome.seconds)}"
    ended += f": {outcome.message}" if outcome.message else ""
    return f"{ended}; about {clock(left)} left" if done < total else ended


def eta(runs: Sequence[Run], outcomes: Mapping[str, Outcome], jobs: int) -> float:
    """Seconds until all runs have ended, if each takes what those of its variant took, or else what all took, on average."""
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes.values():
        if outcome.how == "finished":
            seconds.setdefault(outcome.run.variant, []).append(outcome.seconds)
    every = [s for values in seconds.values() for s in values] or [o.seconds for o in outcomes.values()] or [0.0]
    left = [seconds.get(run.variant, every) for run in runs if run.name not in outcomes]
    return sum(sum(values) / len(values) for values in left) / jobs


def clock(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class _Children:
    """The processes that are running, and whether they have been told to stop."""

    def __init__(self):
        self.running: set[subprocess.Popen] = set()
        self.stopping = threading.Event()
        self.lock = threading.Lock()

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen | None:
        """Starts a process, unless all are to stop; in a session of its own, so that a terminal's Ctrl-C comes from here."""
        with self.lock:
            if self.stopping.is_set():  # the log of an earlier call stays
                return None
            with log.open("w") as out:
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment(),
                    start_new_session=True,
                )  # fmt: skip
            self.running.add(process)
            if self.stopping.is_set():  # the signal came between the question and the start
                process.send_signal(signal.SIGTERM)
            return process

    def stop(self, *_: object) -> None:
        """Tells all processes to save and end. It takes no lock: it runs in a signal handler."""
        self.stopping.set()
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _passing_on_signals() -> Iterator[_Children]:
    children, former = _Children(), {}
    if threading.current_thread() is threading.main_thread():
        former = {s: signal.signal(s, children.stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield children
    except BaseException:
        children.stop()
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _train_one(run: Run, logs: Path, children: _Children) -> Outcome:
    path, began = logs / f"{run.variant}_{run.seed}.log", time.monotonic()
    process = children.start([sys.executable, *run.arguments, f"--stopped_status={STOPPED}"], path)
    if process is None:
        return Outcome(run, "stopped", 0.0)
    status = process.wait()
    children.running.discard(process)
    seconds = time.monotonic() - began
    if status == 0:
        return Outcome(run, "finished", seconds)
    if status == STOPPED or (children.stopping.is_set() and status < 0):
        return Outcome(run, "stopped", seconds)
    return Outcome(run, "failed", seconds, f"{last_line(path) or f'exit status {status}'} ({path})")


def last_line(log: Path) -> str:
    """The last line that is not empty, at most 200 characters of it."""
    lines = [text.strip() for text in log.read_text(errors="replace").splitlines() if text.strip()]
    return lines[-1][:200] if lines else ""
