"""Trackers, offline: real packages where they are installed, a function of one's own, failures, and resuming."""

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from meal_jax import config as base
from meal_jax import track
from meal_jax.runtime import identity
from meal_jax.runtime.metrics import MetricWriter

ROOT = Path(__file__).parents[1]
VALUES = {"steps": 6, "objectives": ("first!", "second"), "reward.heads": None, "meal.tau": 0.1}


def write(tracker, workdir, steps):
    """Rows of steps, of which the second has a value that is not a number."""
    with MetricWriter(workdir, tensorboard=False, start_step=steps[0], tracker=tracker) as writer:
        for step in steps:
            writer.write(step, {"utility": step / 2, "reward/first!/mean": float("nan") if step == 1 else 1.0})


# Killed after step 3, with a checkpoint at 2: steps 2 and 3 are done again.
TWICE = """
import pathlib, runpy, sys
from meal_jax import track
test = runpy.run_path(sys.argv[2])
for steps in (range(4), range(2, 6)):
    tracker = track.start(sys.argv[1], pathlib.Path("run"), test["VALUES"])
    assert tracker is not None and tracker.resumed == (steps[0] == 2)
    test["write"](tracker, pathlib.Path("run"), steps)
"""


def run_twice(package, directory, **environment):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[{package}]'")
    run = subprocess.run(
        [sys.executable, "-c", TWICE, package, __file__],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "failed" not in run.stderr, run.stderr[-3000:]
    return json.loads((directory / "run" / track.RECORD).read_text())["id"]


STEPS = [(step, step / 2) for step in range(6)]


def wandb_messages(path):
    """Messages of a .wandb file: 7 bytes, then blocks of 32 KiB of pieces (checksum, length, type, bytes)."""
    data, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # the rest of a block that has no room for a piece
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last of several pieces
            yield message
            message = b""


def test_wandb_offline(tmp_path):
    identity = run_twice("wandb", tmp_path, WANDB_MODE="offline", HOME=str(tmp_path))
    from wandb.proto import wandb_internal_pb2

    rows, config = [], {}
    for file in sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb")):
        for message in wandb_messages(file):
            record = wandb_internal_pb2.Record.FromString(message)
            row = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if row:
                rows.append((record.history.step.num, float(row["utility"])))
            config |= {item.key: item.value_json for item in record.run.config.update}
    assert rows == STEPS and json.loads(config["meal.tau"]) == 0.1


def test_mlflow_in_a_file(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    identity = run_twice("mlflow", tmp_path, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="toys")
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        rows = store.execute("SELECT run_uuid, step, value FROM metrics WHERE key = 'utility' ORDER BY step").fetchall()
        assert rows == [(identity, *row) for row in STEPS]
        assert store.execute("SELECT count(*) FROM metrics WHERE key = 'reward/first_/mean'").fetchone() == (5,)
        assert store.execute("SELECT value FROM params WHERE key = 'meal.tau'").fetchone() == ("0.1",)
        assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        assert ("toys",) in store.execute("SELECT name FROM experiments").fetchall()


def test_trackio_on_this_machine(tmp_path):
    identity = run_twice("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"), TRACKIO_PROJECT="toys")
    [file] = (tmp_path / "trackio").glob("toys*.db")
    with sqlite3.connect(file) as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step, json.loads(row)["utility"]) for name, step, row in rows] == [(identity, *row) for row in STEPS]


OWN = """
import json, pathlib

def log(row):
    assert row["step"] != FAILS
    with open(pathlib.Path(__file__).parent / "rows.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\\\n")
"""


def own(directory, fails):
    (directory / "mine.py").write_text(OWN.replace("FAILS", str(fails)).replace("\\\\n", "\\n"))
    return f"{directory}/mine.py:log"


def test_a_function_of_ones_own_gets_every_row_once(tmp_path):
    log = own(tmp_path, fails=None)
    for steps in (range(4), range(2, 6)):
        write(track.start(log, tmp_path / "run", VALUES), tmp_path / "run", steps)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["step"], row["utility"]) for row in rows] == STEPS
    assert ["reward/first!/mean" in row for row in rows] == [True, False, True, True, True, True]


def test_what_a_step_gets_later_is_logged_alone(tmp_path):
    """A finished run that goes on: its last row was an evaluation's, and is a step's as well now."""
    log = own(tmp_path, fails=None)
    for row in ({"eval/hypervolume": 1.0}, {"utility": 2.0, "eval/hypervolume": 1.0}):
        with MetricWriter(
            tmp_path / "run", False, start_step=6, tracker=track.start(log, tmp_path / "run", {})
        ) as writer:
            writer.write(6, row)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [{"step": 6, "eval/hypervolume": 1.0}, {"step": 6, "utility": 2.0}]


def test_a_tracker_that_fails_says_so_once_and_stops_nothing(tmp_path, caplog):
    write(track.start(own(tmp_path, fails=2), tmp_path / "run", VALUES), tmp_path / "run", range(6))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    [message] = [record.getMessage() for record in caplog.records]
    assert "mine.py:log" in message and "AssertionError" in message and "metrics.jsonl has all of them" in message


def test_a_tracker_that_does_not_open_stops_nothing(tmp_path, caplog, monkeypatch):
    def unreachable(*arguments):
        raise ConnectionError("no network")

    monkeypatch.setitem(track.OPEN, "wandb", unreachable)
    assert track.start("wandb", tmp_path, VALUES) is None and "no network" in caplog.text
    assert track.start("", tmp_path, VALUES) is None and not (tmp_path / track.RECORD).exists()


def test_another_tracker_begins_anew(tmp_path):
    log = own(tmp_path, fails=None)
    assert not track.start(log, tmp_path, {}).resumed and track.start(log, tmp_path, {}).resumed
    (tmp_path / track.RECORD).write_text('{"track": "wandb", "id": "a"}')
    assert not track.start(log, tmp_path, {}).resumed


def test_what_is_missing_is_refused_before_a_run(monkeypatch, tmp_path):
    config = base.default()
    config.track = "tensorboard"
    with pytest.raises(ValueError, match="not one of wandb, trackio, mlflow, nor a function"):
        base.check(config)
    config.track = "elsewhere.py:log"  # reading a run on another machine needs neither file nor package
    base.check(config)
    with pytest.raises(FileNotFoundError, match="no file"):
        track.need(config.track)
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'meal_jax\[wandb\]'"):
        track.need("wandb")


def test_a_run_stays_the_same_run_with_another_tracker():
    assert identity.need_same("run", {"track": "", "steps": 1}, {"track": "wandb", "steps": 1}) == {
        "track": ("", "wandb")
    }
