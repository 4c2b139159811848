"""A run's output, metrics on disk and progress on the terminal, and its input: requests to stop."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from meal_jax import console, json_files
from meal_jax.runtime import distributed

LINE_SECONDS = 10.0  # between progress lines without a terminal
COMPILE_SECONDS = 1.0  # of a compilation that is worth a line
FLUSH_SECONDS = 30.0  # between flushes of the events


class MetricWriter:
    """Writes a row per step to `<workdir>/metrics.jsonl` and TensorBoard events to `<workdir>/tensorboard`; process 0 only.

    A resumed run repeats the steps after its checkpoint, so their rows are dropped first, and the file never holds a step
    twice. To leave no gap either, write the metrics of the steps before a checkpoint before saving it. The row of a step
    whose state was evaluated has the evaluation's values, too.
    """

    def __init__(
        self, workdir: str | os.PathLike, tensorboard: bool = True, start_step: int = 0, tracker: Any | None = None
    ):
        """Opens the files.

        Args:
          workdir: created if needed.
          tensorboard: also write events.
          start_step: first step that will be written; rows from this step on, of an interrupted run, are dropped.
          tracker: a `track.Tracker`, which gets each row as well, and is closed with the files. One that has rows of the
            interrupted run gets of the repeated steps only what it lacks.
        """
        self._lines, self._events, self._flushed = None, None, time.monotonic()
        self._tracker, self._tracked = tracker, {}
        if jax.process_index() != 0:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        dropped = _drop_rows(path, start_step)
        if tracker is not None and tracker.resumed:
            self._tracked = dropped
        self._lines = path.open("a", buffering=1)  # line-buffered: after SIGKILL at most part of a line is lost
        if tensorboard:
            # tensorboardX's SummaryWriter writes from a thread, and its flush does not write the queue.
            (workdir / "tensorboard").mkdir(exist_ok=True)
            suffix = f".{os.getpid()}.{start_step}"  # the default name is the time in seconds, which may not be unique
            self._events = EventsWriter(str(workdir / "tensorboard" / "events"), suffix)
            # Viewers then ignore this step and later ones in earlier files.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=start_step, wall_time=time.time(), session_log=start))

    @property
    def shows(self) -> bool:
        """Whether texts and images are written."""
        return self._events is not None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row. Values are anything that `float` accepts; NaN and infinity become null in the file."""
        row = {name: float(value) for name, value in values.items()}
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        if self._lines is not None:
            self._lines.write(json.dumps({"step": int(step)} | dict.fromkeys(row) | finite) + "\n")
        if self._tracker is not None:
            new = {name: value for name, value in finite.items() if name not in self._tracked.get(int(step), ())}
            if new:
                self._tracker.log({"step": int(step)} | new)
        self._summarise(step, Summary(value=[Summary.Value(tag=name, simple_value=v) for name, v in row.items()]))

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a text in Markdown to TensorBoard."""
        self._summarise(step, summary.text(tag, text))

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Writes a picture to TensorBoard, the bytes of a PNG file."""
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._summarise(step, Summary(value=[Summary.Value(tag=tag, image=image)]))

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Writes a configuration for TensorBoard's table of runs, next to the last values of `metrics`."""
        known = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()}
        for part in summary.hparams(known, dict.fromkeys(metrics, 0.0)):
            self._summarise(0, part)

    def _summarise(self, step: int, written: Summary) -> None:
        if self._events is not None:
            self._events.write_event(Event(step=int(step), wall_time=time.time(), summary=written))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Writes everything to disk; call it before saving a checkpoint."""
        if self._lines is not None:
            self._lines.flush()
        if self._events is not None:
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._tracker is not None:
            self._tracker.close()
        self._lines, self._events, self._tracker = None, None, None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _drop_rows(path: pathlib.Path, start_step: int) -> dict[int, set[str]]:
    """Rewrites the file without the rows from `start_step` on and without the partial line that a kill may leave.

    A step that an older version gave a second row, of its evaluation, gets them joined.

    Returns:
      Names in the dropped rows, by step.
    """
    if not path.exists():
        return {}
    rows = json_files.read_rows(path)
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(json.dumps(row) + "\n" for step, row in rows.items() if step < start_step))
    rewritten.replace(path)  # if killed before this, the old file stays
    return {step: set(row) for step, row in rows.items() if step >= start_step}


def _never() -> float:
    return 0.0


@contextlib.contextmanager
def progress(
    total: int, start: int, description: str, compiling: Callable[[], float] = _never, unit: str = "step"
) -> Iterator[Meter]:
    """Shows the progress of a loop: a bar on a terminal, else a line every ten seconds and at the end. Process 0 only.

    Args:
      total: number of steps.
      start: steps done before this loop (a resumed run).
      description: of the loop, in a word or two.
      compiling: gives the seconds spent on compilation so far. They are said, and count neither in the rate nor in the time
        left.
      unit: what is counted, one of them.

    Yields:
      A Meter, to update after every step.
    """
    if jax.process_index() != 0:
        yield Meter(total, start, description, compiling, unit)
        return
    bar = None
    if sys.stdout.isatty():
        columns = ["{task.completed}/{task.total}", "{task.fields[timing]}"]
        text = [TextColumn(column, markup=False) for column in ["{task.description}", *columns]]
        bar = _Bar(text[0], BarColumn(bar_width=24), *text[1:], console=Console())
    with bar or contextlib.nullcontext():
        meter = Meter(total, start, description, compiling, unit, bar=bar, lines=bar is None)
        try:
            yield meter
        finally:
            meter.finish()


class _Bar(Progress):
    """A progress bar with the numbers below it, where they wrap and are not cut off."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["shown"]:
                yield Padding(Text(task.fields["shown"]), (0, 0, 0, 2))


class Meter:
    """One progress display; made by `progress`."""

    def __init__(
        self,
        total: int,
        start: int,
        description: str,
        compiling: Callable[[], float] = _never,
        unit: str = "step",
        bar: Progress | None = None,
        lines: bool = False,
    ):
        self._total, self._description, self._bar, self._lines = total, description, bar, lines
        self._compiling, self._compiled, self._unit = compiling, compiling(), unit
        self._step, self._shown = start, ""
        self._begin = self._printed = time.monotonic()
        self._mark: tuple[int, float] | None = None  # step and time, without compilation, at the end of the first step
        self._pending = False
        if bar is not None:
            self._task = bar.add_task(description, total=total, completed=start, timing="", shown="")

    def update(self, step: int, /, **shown: Any) -> None:
        """Records that `step` steps are done; `shown` are a few numbers to show with it, by any names."""
        now = time.monotonic()
        self.tell_compilation("step")
        self._step, self._pending = step, True
        self._shown = "  ".join(f"{k} {v}" if isinstance(v, int | str) else f"{k} {v:.4g}" for k, v in shown.items())
        if self._bar is not None:
            unbroken = "  ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in self._shown.split("  "))
            self._bar.update(self._task, completed=step, timing=self.timing(now), shown=unbroken)
        elif self._lines and now - self._printed >= LINE_SECONDS:
            self._print(now)
        if self._mark is None:
            self._mark = (step, now - self._compiling())

    def tell_compilation(self, what: str) -> None:
        """Says how long `what` took to compile, if it did so since the last call and took a second or longer."""
        seconds, self._compiled = self._compiling() - self._compiled, self._compiling()
        if seconds >= COMPILE_SECONDS and (self._lines or self._bar is not None):
            console.say(f"{self._description}: {what} compiled in {_clock(seconds)}")

    def timing(self, now: float) -> str:
        """Rate, time so far and time left, e.g. "12.3 steps/s  0:41 elapsed  2:10 left"; below one a second "2.4 s/step".

        The rate starts at the end of the first step and leaves compilation out; the time so far is all time.
        """
        elapsed = _clock(now - self._begin)
        if self._mark is None:
            return f"{elapsed} elapsed"
        steps, seconds = self._step - self._mark[0], now - self._compiling() - self._mark[1]
        if steps <= 0 or seconds <= 0:
            return f"{elapsed} elapsed"
        rate = steps / seconds
        left = _clock((self._total - self._step) / rate)
        pace = f"{rate:.3g} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}"
        return f"{pace}  {elapsed} elapsed  {left} left"

    def finish(self) -> None:
        """Shows the last step if it was not shown yet."""
        if self._lines and self._pending:
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        line = f"{self._description}  {self._step}/{self._total}  {self.timing(now)}  {self._shown}"
        print(line.rstrip(), flush=True)
        self._printed, self._pending = now, False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Preemption:
    """Context in which SIGTERM and the first Ctrl-C ask the loop to save and stop, which it does at a `stop_point`.

    A second Ctrl-C interrupts at once. The previous handlers are restored on exit. Outside the main thread, where Python
    allows no handlers, nothing is installed.

    While there is nothing to save (`nothing_to_save`), as during the first step's compilation, which no Python handler can
    interrupt, the program ends at once, with `status`; several processes end so together, within seconds.

    With several processes a request to one is a request to all, and they stop at the same point: JAX's preemption service
    handles SIGTERM and the cluster's own notices, and Ctrl-C is passed on to it.
    """

    status = 0  # exit status of a program that is stopped while there is nothing to save

    def __init__(self):
        self.requested, self._nothing_to_save = False, False
        self._pipe, self._wakeup = None, -1
        self._several = jax.process_count() > 1
        self._interrupted = False
        self._before = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
            if not self._several:
                # The signal's number is written here by C, at once, whatever the main thread does.
                self._pipe = os.pipe()
                os.set_blocking(self._pipe[1], False)
                self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                threading.Thread(target=self._leave, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            # None is a handler that was not installed from Python, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe[1])  # ends the thread, which closes the other end
            self._pipe = None

    def _leave(self, heard: int) -> None:
        """Thread: ends the program on a signal while there is nothing to save."""
        while numbers := os.read(heard, 64):
            if self.nothing_to_save and {signal.SIGTERM, signal.SIGINT} & set(numbers):
                print(console.wrap(distributed.STOPPED_EARLY, sys.stderr), file=sys.stderr)
                sys.stderr.flush()
                os._exit(self.status)
        os.close(heard)

    @property
    def nothing_to_save(self) -> bool:
        return self._nothing_to_save

    @nothing_to_save.setter
    def nothing_to_save(self, value: bool) -> None:
        self._nothing_to_save = value
        distributed.nothing_to_save(value)

    def stop_point(self) -> bool:
        """Whether to stop here. With several processes, all must call it equally often; see `distributed`."""
        return distributed.stop_point() if self._several else self.requested

    def _handle(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = number == signal.SIGINT or self._interrupted
        self.requested = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
