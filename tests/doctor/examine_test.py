import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from meal_jax import config as base
from meal_jax import track
from meal_jax.doctor import examine, finding, software
from tests import xla

ROOT = Path(__file__).parents[2]


def doctor(workdir, *flags, devices=1, **options):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{xla.devices(devices)} {xla.QUICK}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "meal_jax.doctor", f"--workdir={workdir}", *flags],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def test_a_failure_is_in_the_report_and_in_the_exit_status(tmp_path):
    process = doctor(tmp_path / "run", "--config=configs/toy.py", "--config.mesh.data=3", "--config.meal.tau=0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    lines = re.findall(r"^(ok|warn|fail) +(\w+)", output, re.MULTILINE)
    assert [name for status, name in lines if status == "fail"] == ["config", "mesh"]  # and the rest was still examined
    assert ("ok", "collective") in lines and "→ Set config.mesh.data" in output and "2 failed" in output
    assert not list(tmp_path.iterdir())


def test_another_kind_of_configuration_is_refused(tmp_path):
    output, _ = doctor(tmp_path, "--config=configs/reward_model.py").communicate(timeout=120)
    assert "not of meal_jax.main" in output and "Traceback" not in output


def test_a_check_of_devices_that_hangs_is_given_up():
    with pytest.raises(TimeoutError):
        examine.within(0.05, lambda: time.sleep(1))
    assert examine.within(10, lambda: [1]) == [1]
    with pytest.raises(KeyError):
        examine.within(10, lambda: {}["x"])


def test_devices_that_cannot_be_used_are_told_of(tmp_path, monkeypatch, capsys):
    def reserved():
        raise RuntimeError("Unable to initialize backend 'tpu': The TPU is already in use by process 7.\nMore.")

    monkeypatch.setattr(jax, "devices", reserved)
    with pytest.raises(SystemExit) as end:
        examine.examine(base.default(), str(tmp_path))
    display = capsys.readouterr().out
    assert end.value.code == 1 and "already in use by process 7." in display and "1 failed" in display


def test_what_other_processes_found_is_told_by_all(monkeypatch):
    own = [finding.ok("workdir", "fine"), finding.warn("versions", "old")]
    reference = [finding.fail("workdir", "not writable", "Give another."), finding.warn("versions", "old")]

    def allgather(value):
        if np.ndim(value) == 0:
            return np.array([value, len(json.dumps(reference).encode())])
        row = np.zeros_like(value)
        text = np.frombuffer(json.dumps(reference).encode(), np.uint8)
        row[: len(text)] = text
        return np.stack([value, row])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    result = examine.gathered(own)
    assert result == [*own, finding.fail("workdir", "not writable (processes [1])", "Give another.")]


def test_versions_are_held_against_what_the_package_asks_for(monkeypatch):
    asked = ["jax>=0.1", "numpy<1", "torch>99; extra == 'test'", "not-there>=1"]
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda name: asked)
    first, second = software.versions()
    assert first.status == "ok" and f"jax {jax.__version__}" in first.detail
    assert second.status == "warn" and "numpy" in second.detail and "not-there is not installed" in second.detail
    assert "torch" not in second.detail


def test_a_tracker_that_is_not_installed_is_a_failure_as_in_the_run(monkeypatch):
    config = base.default()
    config.track = "wandb"
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    result = software.settings(config)
    assert result.status == "fail" and "pip install 'meal_jax[wandb]'" in result.detail


def test_a_reward_function_that_cannot_be_imported_is_a_failure_and_not_a_crash(tmp_path):
    (tmp_path / "mine.py").write_text("import a_module_that_is_not_there\n")
    config = base.default()
    config.reward.sources = (f"python:{tmp_path / 'mine.py'}:short",) * 2
    result = software.settings(config)
    assert result.status == "fail" and "a_module_that_is_not_there" in result.detail


@pytest.mark.slow
def test_two_processes_examine_together(tmp_path):
    """Their devices as one, and a fault of either in the one report."""
    flags = ["--config=configs/toy.py", "--coordinator=localhost:9927", "--processes=2"]
    (tmp_path / "file").touch()
    runs = [
        doctor(tmp_path / where, *flags, f"--process={i}", devices=2) for i, where in enumerate(("run", "file/run"))
    ]
    outputs = [run.communicate(timeout=400)[0] for run in runs]
    assert [run.returncode for run in runs] == [1, 1], outputs
    assert (
        re.search(r"fail +workdir .*it is a file.*\(processes \[1\]\)", outputs[0]) and "of 2 processes" in outputs[0]
    )
    assert re.search(r"ok +step", outputs[0]) and "1 failed" in outputs[0] and "fail" not in outputs[1]


def test_where_weights_or_data_are_missing_nothing_is_compiled(monkeypatch, tmp_path):
    def compiled(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(examine.devices, "compile_collective", compiled)
    monkeypatch.setattr(examine.devices, "compile_small_step", compiled)
    config = base.default()
    config.task, config.policy.source = "assistant", str(tmp_path / "nowhere")
    config.data.path = str(tmp_path / "no_data")
    result = {f.name: f.status for f in examine.examine(config, str(tmp_path / "run"))}
    assert (result["policy"], result["data"]) == ("fail", "fail")
    assert (result["memory"], result["collective"], result["step"]) == ("unknown",) * 3


@pytest.mark.parametrize(
    ("count", "processes", "backend", "says", "not_says"),
    [
        (1, 1, "cpu", "no answer from the device in 180 s", "NCCL"),
        (8, 1, "gpu", "NCCL_DEBUG", "every host"),
        (8, 2, "tpu", "started on every host", "NCCL"),
    ],
)
def test_a_device_that_does_not_answer_is_named_for_what_it_is(monkeypatch, count, processes, backend, says, not_says):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    result = examine.silent("step")
    assert says in result.detail + result.advice and not_says not in result.advice and "being compiled" in result.detail
