"""Runs of several processes: the same as one process's, stopped together, and gone on with to the bit."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import toy
from meal_jax import methods, sft, train
from meal_jax.runtime import checkpoint, distributed, sharding
from meal_jax.saved_run import open_run, read_config
from tests.runtime.checkpoint_test import META, abstract, make_state, raw
from tests.runtime.processes import HEARTBEAT, ROOT, Group
from tests.sft_test import config as tuning  # noqa: F401, a fixture
from tests.train_test import TEXT_REWARDS, newest

SMALL = {
    "steps": 24, "batch_size": 4, "meal.candidates": 2, "meal.net": False, "sampling.max_new": 4, "compare_with": (),
    "policy.width": 16, "policy.hidden": 16, "policy.layers": 1, "eval.prompts": 16, "eval.batch_size": 16,
    "eval.every": 12, "eval.divisions": 1, "eval.bootstrap": 20, "eval.samples": 16, "checkpoint.every": 2,
    "checkpoint.keep": 3,
}  # fmt: skip
PAUSE = 0.25  # seconds a step takes at least, so that a signal meets it


def start(workdir, cache, fields, processes=2, devices=1, file="configs/toy.py"):
    command = ["-m", "meal_jax.main", f"--config={file}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in (SMALL | fields).items()]
    return Group(command, workdir.with_name(workdir.name + "_logs"), processes, devices, cache)


def config_file(folder, run):
    """A file for --config that gives the configuration in another folder's config.json."""
    path = folder / "config.py"
    reads = f"def get_config():\n    return read_config({str(run)!r})\n"
    path.write_text(f"from meal_jax.saved_run import read_config\n\n\n{reads}")
    return path


def in_this_process(workdir, fields, devices):
    """The same run in one process, on as many devices."""
    config = toy.get_config()
    config.update_from_flattened_dict(SMALL | fields)
    make = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sharding, "make_mesh", lambda *_: make(None, 1, 1, jax.devices()[:devices]))
        train.run(config, str(workdir))


def wait_for_checkpoint(group, workdir, after=0, timeout=240):
    """Waits for a checkpoint past `after` that is whole on disk while the run goes on."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and group.running():
        if max([int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()], default=0) > after:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint past {after}:\n{group.output()}")


def metrics(workdir):
    """The metrics of each step, but for times and memory."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "utility" in row]
    assert [row["step"] for row in steps] == list(range(len(steps)))
    return [{n: v for n, v in row.items() if not n.startswith(("time/", "memory/", "score/"))} for row in steps]


def results(workdir):
    return json.loads((workdir / "pareto.json").read_text())


def assert_same_run(single, other):
    """To float tolerance: metrics of every step and the last state; and every answer, token for token."""
    for row, peer in zip(metrics(single), metrics(other), strict=True):
        assert row == pytest.approx(peer, rel=2e-3, abs=1e-5)
    for before in (True, False):
        samples = [
            json.loads(sorted((workdir / "evals").glob("*.json"))[0 if before else -1].read_text())["samples"]
            for workdir in (single, other)
        ]
        answers = [[answer["response"] for prompt in s for answer in prompt["answers"]] for s in samples]
        assert len(answers[0]) >= 32 and answers[0] == answers[1]
    np.testing.assert_allclose(results(single)["points"], results(other)["points"], rtol=1e-5)
    states = [open_run(workdir).state for workdir in (single, other)]
    leaves = [jax.tree.leaves((state.policy, state.rewards, state.step)) for state in states]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Rewards of which one reads text; its function takes its time."""
    code = tmp_path_factory.mktemp("code") / "mine.py"
    pause = f"    import os, time\n    time.sleep(float(os.environ.get('PAUSE', '{PAUSE}')))\n"
    code.write_text(TEXT_REWARDS.replace("    ids = lambda", pause + "    ids = lambda"))
    return {"reward.sources": (f"jax:{code}:first", f"python:{code}:second")}


@pytest.fixture(scope="module")
def two(tmp_path_factory, cache, fields):
    """Workdir of a run of two processes that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    with start(workdir, cache, fields) as group:
        assert group.wait() == [0, 0], group.output()
        assert "2 processes, 2 devices" in group.output(0)
        assert "pareto.png" in group.output(0) and "pareto.png" not in group.output(1)
    return workdir


def test_two_processes_train_and_evaluate_as_one_does(two, fields, tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "0")
    in_this_process(tmp_path / "run", fields, devices=2)
    assert_same_run(two, tmp_path / "run")
    result = results(two)
    assert (result["processes"], result["compiled"], results(tmp_path / "run")["compiled"]) == (2, 1, 1)
    assert {path.name for path in two.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    assert len(list((two / "tensorboard").iterdir())) == 1  # process 0's alone
    spread = open_run(two, devices=4)  # saved by two processes, read by one, on more devices
    assert spread.step == 24 and len(spread.state.policy["transformer"]["embedding"].sharding.device_set) == 4


def test_killed_stopped_and_damaged_it_ends_with_the_same_bits(two, cache, fields, tmp_path):
    workdir = tmp_path / "run"
    with start(workdir, cache, fields) as group:
        wait_for_checkpoint(group, workdir, after=2)
        group.processes[1].send_signal(signal.SIGKILL)
        codes = group.wait(timeout=2 * HEARTBEAT + 30)
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL)
        assert "another process died first" in group.output(0) or "another task died" in group.output(0)
    reached = newest(workdir)[0]
    assert 2 < reached < 24 and not (workdir / "pareto.json").exists()

    # The same command; the newest checkpoint has lost half of every file of arrays, another was being written. (Its largest
    # file alone may be one that a restore does not read.)
    arrays = [path for path in (workdir / "checkpoints" / str(reached) / "state").rglob("d/*") if path.is_file()]
    assert len(arrays) >= 2
    for path in arrays:
        os.truncate(path, path.stat().st_size // 2)
    (workdir / "checkpoints" / f"{reached + 2}.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    with start(workdir, cache, fields) as group:
        wait_for_checkpoint(group, workdir, after=reached)
        assert all("is damaged and is skipped" in group.output(i) for i in range(2)), group.output()
        group.processes[1].send_signal(signal.SIGTERM)  # one is told to stop
        began = time.monotonic()
        assert group.wait(timeout=60) == [0, 0], group.output()
        print(f"stopped within {time.monotonic() - began:.1f} s")
        stopped = newest(workdir)[0]
        assert reached < stopped < 24
        for i in range(2):
            assert f"stopped at step {stopped} of 24" in group.output(i)

    with start(workdir, cache, fields) as group:
        assert group.wait() == [0, 0], group.output()
    assert newest(workdir) == newest(two)
    assert metrics(workdir) == metrics(two) and results(workdir)["points"] == results(two)["points"]
    remaining = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert remaining == {"20", "22", "24", f"{reached}.damaged"}


def test_parts_of_a_run_between_two_processes(tmp_path):
    """Agreeing, sharing texts, slices, and checkpoints of one process read, written, and every damage skipped by two."""
    state = make_state(sharding.make_mesh(2, 2, 2), 10)
    opened = checkpoint.open_checkpoints(tmp_path / "from_one", keep=1)
    checkpoint.save(opened, 10, state, META)
    checkpoint.close(opened)
    command = ["tests/runtime/two_processes.py", str(tmp_path)]
    with Group(command, tmp_path / "logs", processes=2, devices=2, cache=tmp_path / "cache") as group:
        assert group.wait(timeout=180) == [0, 0], group.output()
        assert all("all well" in group.output(i) for i in range(2))
    reader = checkpoint.open_checkpoints(tmp_path / "from_two", keep=None)
    step, actual, _ = checkpoint.restore_latest(reader, abstract(state))
    expected = raw(state | {"step": jax.device_put(np.int32(30), state["step"].sharding)})
    assert step == 30 and raw(actual) == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("meal", "static")])
def test_the_methods_beside_it_train_in_two_processes_as_in_one(method, tmp_path, cache):
    few = {"steps": 3, "eval.every": 3, "method": method, "ric.offline_steps": 1, "dpo.sft_steps": 1, "parm.pairs": 1}
    workdirs = [tmp_path / "two", tmp_path / "one"]
    with start(workdirs[0], cache, few) as group:
        assert group.wait() == [0, 0], group.output()
    in_this_process(workdirs[1], few, devices=2)
    for row, peer in zip(*map(metrics, workdirs), strict=True):
        # Log-ratios of either sign that all but cancel in so few steps: rounding moves their mean, on one device or two alike.
        drift = [single.pop("ppo/kl", 0.0) for single in (row, peer)]
        assert row == pytest.approx(peer, rel=2e-3, abs=1e-5) and max(map(abs, drift)) < 0.1
    # Answers before training: Adam's first steps magnify rounding, and after them a close draw may fall the other way.
    first = [json.loads(min((workdir / "evals").glob("*.json")).read_text())["points"] for workdir in workdirs]
    np.testing.assert_allclose(*first, rtol=1e-5)


@pytest.mark.slow
def test_four_processes_lose_the_first_and_two_go_on(tmp_path, cache):
    """Meal, its weight-net and the single program of rewards on the device; process 0, which leads the others, is killed."""
    fields = {"meal.net": True, "batch_size": 8, "steps": 40, "eval.divisions": 2}
    workdir = tmp_path / "run"
    with start(workdir, cache, fields, processes=4) as group:
        wait_for_checkpoint(group, workdir)
        group.processes[0].send_signal(signal.SIGKILL)
        codes = group.wait(timeout=2 * HEARTBEAT + 30)
        assert all(code != 0 for code in codes)
        assert all("died" in group.output(i) for i in range(1, 4)), group.output()
    assert 0 < newest(workdir)[0] < 40
    with start(workdir, cache, fields, processes=2, devices=2) as group:
        assert group.wait(timeout=600) == [0, 0], group.output()
    in_this_process(tmp_path / "one", fields, devices=4)
    assert_same_run(workdir, tmp_path / "one")


@pytest.mark.slow
def test_adapters_on_a_base_that_two_processes_share_with_heads_and_a_judge(assistant_run, tmp_path, cache):
    """Weights read from a file to devices of both, hidden states for the heads, and the base as judge of texts."""
    ran = assistant_run("text")
    file = tmp_path / "config.py"
    file.write_text(
        f"from meal_jax.saved_run import read_config\n\n\ndef get_config():\n    return read_config({str(ran)!r})\n"
    )
    fields = {
        "steps": 3, "eval.every": 3, "eval.prompts": 8, "eval.batch_size": 8, "mesh.data": 2, "mesh.fsdp": 2,
        "batch_size": 8, "policy.hidden": 128, "policy.width": 64, "policy.layers": 2,
        "reward.sources": ("heads", "judge:Is it polite?"),
    }  # fmt: skip
    with start(tmp_path / "two", cache, fields, devices=2, file=file) as group:
        assert group.wait(timeout=600) == [0, 0], group.output()
    config, make = read_config(ran), sharding.make_mesh
    config.update_from_flattened_dict(SMALL | fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sharding, "make_mesh", lambda *_: make(2, 2, 1, jax.devices()[:4]))
        train.run(config, str(tmp_path / "one"))
    assert metrics(tmp_path / "two") == [pytest.approx(row, rel=2e-3, abs=1e-4) for row in metrics(tmp_path / "one")]
    np.testing.assert_allclose(results(tmp_path / "two")["points"], results(tmp_path / "one")["points"], rtol=1e-3)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does_and_one_writes_the_model(tuning, tmp_path, cache):  # noqa: F811
    config = tuning
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(config.to_json_best_effort())
    file = config_file(tmp_path, tmp_path / "config")
    command = ["-m", "meal_jax.main", f"--config={file}"]
    with Group([*command, f"--workdir={tmp_path / 'two'}"], tmp_path / "logs", 2, 1, cache) as group:
        assert group.wait() == [0, 0], group.output()
        assert "run the same command in one process to write" in group.output(0)
    make, losses = sharding.make_mesh, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sharding, "make_mesh", lambda *_: make(None, 1, 1, jax.devices()[:2]))
        for name in ("one", "two"):
            sft.run(config, str(tmp_path / name))
            losses.append(json.loads((tmp_path / name / sft.TUNED).read_text())["held_out_loss"])
            assert (tmp_path / name / "model" / "config.json").exists()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def refused(tmp_path, *flags, **environment):
    command = [
        sys.executable,
        "-m",
        "meal_jax.main",
        "--config=configs/toy.py",
        f"--workdir={tmp_path / 'run'}",
        *flags,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr and not (tmp_path / "run").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"processes": 2}, {}, "come with --coordinator"),
        ({"coordinator": "host", "processes": 2, "process": 0}, {}, "not HOST:PORT"),
        ({}, {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 tasks.*add --distributed"),
    ],
)
def test_what_cannot_start_is_refused(monkeypatch, arguments, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.start(**arguments)


def test_a_host_of_a_pod_that_did_not_join_is_told_to(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="devices are of 4 hosts.*add --distributed"):
        distributed.start()


def test_processes_that_cannot_be_found_are_said_so_without_a_trace(tmp_path):
    assert "give --coordinator=HOST:PORT --processes=N --process=i" in refused(tmp_path, "--distributed")


def test_the_address_may_come_from_the_environment(monkeypatch):
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *of, **options: asked.update(of=of, **options))
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "put back afterwards")
    monkeypatch.delenv("JAX_COORDINATOR_PORT")
    for name, value in {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    values = distributed.flags.FlagValues()
    distributed.define_flags(values)
    values(["program", "--heartbeat_seconds=7"])
    distributed.start_as_flags_say(values)
    assert asked["of"] == ("h:1", 2, 1) and asked["heartbeat_timeout_seconds"] == 7
    assert os.environ["JAX_COORDINATOR_PORT"] == distributed.PORT


def test_one_process_decides_alone_and_starts_nothing():
    distributed.start()
    assert distributed.from_first(lambda: (1, 2)) == (1, 2) and distributed.is_first()
    distributed.agree(None, "nothing")
    with pytest.raises(KeyError):
        distributed.agree(KeyError("mine"), "it")
    distributed.refuse_several("this")
    assert not distributed.stop_point()


def test_commands_made_for_one_process_refuse_several(monkeypatch, tmp_path):
    from meal_jax import compare
    from meal_jax.reward_training import fit_heads, fit_model

    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    commands = [
        lambda: compare.run(None, tmp_path, (), 1), lambda: fit_model.run(None), lambda: fit_heads.run(None),
        lambda: open_run(tmp_path),
    ]  # fmt: skip
    for command in commands:
        with pytest.raises(ValueError, match=r"runs in one process: start it on one host"):
            command()


def test_a_wait_that_grows_long_gets_a_hint(monkeypatch, capfd):
    monkeypatch.setattr(distributed, "HINT_SECONDS", 0.05)
    with distributed._hint_if_slow("the others"):
        time.sleep(0.3)
    with distributed._hint_if_slow("nobody"):
        pass
    text = capfd.readouterr().err
    assert "still waiting for the others" in text and "--worker=all" in text and "nobody" not in text
