"""A run's rows in an experiment tracker: `config.track` is "wandb", "trackio", "mlflow", or a function as "mine.py:log".

A function is called with each row of metrics.jsonl: `log(row: dict) -> None`, where row["step"] is the step. The packages take
project, server and key from their own environment variables. WORKDIR/track.json keeps the tracker's run, so that a resumed
run continues it. A tracker that fails costs its rows alone: it says so once and is not called again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from meal_jax.rewards import python
from meal_jax.runtime import distributed

PROJECT = "meal_jax"
RECORD = "track.json"
Log = Callable[[dict[str, Any]], None]
FIELD = "config.track"


class Tracker(NamedTuple):
    """An opened tracker.

    Attributes:
      log: takes a row; never raises.
      close: ends the tracker's run; never raises.
      resumed: it has the rows that an earlier process wrote.
    """

    log: Log
    close: Callable[[], None]
    resumed: bool


def check(track: str) -> None:
    """Refuses a value of `config.track` that is of no known form.

    Raises:
      ValueError: says which forms there are.
    """
    if track and track not in OPEN and not re.fullmatch(r".+\.py:\w+", track):
        raise ValueError(f"{FIELD}={track!r} is not one of {', '.join(OPEN)}, nor a function as mine.py:log.")


def need(track: str) -> None:
    """Refuses a tracker whose package or function is not here, before a run begins.

    Raises:
      ValueError, FileNotFoundError: names what is missing.
    """
    check(track)
    if track in OPEN and importlib.util.find_spec(track) is None:
        raise ValueError(f"{FIELD}={track!r} needs a package that is not installed: pip install 'meal_jax[{track}]'.")
    if track and track not in OPEN:
        python.load(track, FIELD)


def start(track: str, workdir: Path, values: Mapping[str, Any]) -> Tracker | None:
    """Opens the tracker on process 0, continuing the run that `workdir` records.

    Args:
      track: `config.track`.
      workdir: of the run.
      values: the configuration by dotted names.

    Returns:
      Tracker; None without one, or if it cannot be opened, which is said.
    """
    if not track or not distributed.is_first():
        return None
    path = workdir / RECORD
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        record = {}
    resumed = record.get("track") == track
    name = "-".join(workdir.resolve().parts[-2:])
    try:
        if track in OPEN:
            identity, log, close = OPEN[track](record["id"] if resumed else None, name, workdir, values)
        else:
            identity, log, close = None, python.load(track, FIELD), _nothing
        path.write_text(json.dumps({"track": track, "id": identity}) + "\n")
    except Exception as error:  # of any kind: trackers raise what they like
        _give_up(track, error)
        return None
    return Tracker(*_guarded(track, log, close), resumed)


def _guarded(track: str, log: Log, close: Callable[[], None]) -> tuple[Log, Callable[[], None]]:
    """The two functions, which after a failure do nothing."""
    failed = False

    def attempt(function: Callable, *arguments: Any) -> None:
        nonlocal failed
        if failed:
            return
        try:
            function(*arguments)
        except Exception as error:
            failed = True
            _give_up(track, error)

    return lambda row: attempt(log, row), lambda: attempt(close)


def _give_up(track: str, error: Exception) -> None:
    logging.warning(
        "%s=%r failed (%s: %s) and gets no more rows; the run goes on, and metrics.jsonl has all of them",
        FIELD, track, type(error).__name__, error,
    )  # fmt: skip


def _nothing() -> None:
    pass


def _wandb(identity: str | None, name: str, workdir: Path, values: Mapping[str, Any]):
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=identity or uuid.uuid4().hex[:12],
        name=name,
        dir=workdir,
        config=dict(values),
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )

    def log(row: dict[str, Any]) -> None:
        run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    return run.id, log, run.finish


def _trackio(identity: str | None, name: str, workdir: Path, values: Mapping[str, Any]):
    import trackio

    identity = identity or f"{name}-{uuid.uuid4().hex[:6]}"  # a run is known by its name
    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=identity,
        config={key: str(value) if isinstance(value, tuple) else value for key, value in values.items()},
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )

    def log(row: dict[str, Any]) -> None:
        run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    return identity, log, run.finish


def _mlflow(identity: str | None, name: str, workdir: Path, values: Mapping[str, Any]):
    import mlflow
    from mlflow.entities import Metric, Param

    client = mlflow.MlflowClient()
    if identity is None:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else client.create_experiment(title)
        identity = client.create_run(number, run_name=name).info.run_id
        client.log_batch(identity, params=[Param(key, str(value)[:500]) for key, value in values.items()][:100])
    else:
        client.update_run(identity, status="RUNNING")

    def log(row: dict[str, Any]) -> None:
        now = round(1000 * time.time())
        metrics = [
            Metric(re.sub(r"[^\w\-./: ]", "_", key), value, now, row["step"])
            for key, value in row.items()
            if key != "step"
        ]
        client.log_batch(identity, metrics=metrics)

    return identity, log, lambda: client.set_terminated(identity)


# Name of the package to: (its run or None, a name, workdir, configuration) → its run, log, close.
OPEN: dict[str, Callable[..., tuple[str, Log, Callable[[], None]]]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}
