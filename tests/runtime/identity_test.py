"""One directory, one run: which fields may differ, how a difference is named, that nothing is touched, and the lock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meal_jax import compare, sft, train
from meal_jax import config as base
from meal_jax.doctor import files
from meal_jax.runtime import identity
from meal_jax.saved_run import need_same, open_run, read_config

ROOT = Path(__file__).parents[2]


def snapshot(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def changed(config, **fields):
    out = config.copy_and_resolve_references()
    out.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return out


@pytest.fixture
def recorded(tmp_path):
    """A configuration, and a directory that records it as a run of 12 steps, all of them done."""
    config = changed(base.default(), steps=12, method="static", compare_with=())
    directory = tmp_path / "run"
    (directory / "checkpoints" / "12").mkdir(parents=True)
    (directory / "config.json").write_text(train.methods.configure("static", config).to_json_best_effort(indent=2))
    (directory / "pareto.json").write_text(json.dumps({"step": 12, "hypervolume": 0.5}))
    return config, directory


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"optim__lr": 0.01}, "config.optim.lr: 0.001 → 0.01"),
        ({"seed": 1}, "config.seed: 0 → 1"),
        ({"method": "raft"}, "config.method: 'static' → 'raft'"),
        ({"objectives": ("first", "second", "third")}, "config.objectives: .* → "),
        ({"sampling__max_new": 8}, "config.sampling.max_new: 12 → 8"),
        ({"policy__dtype": "bfloat16"}, "config.policy.dtype: 'float32' → 'bfloat16'"),
        ({"policy__param_dtype": "bfloat16", "policy__lora_rank": 8}, "config.policy.param_dtype"),
        ({"rollout__weights": "int8"}, "config.rollout.weights"),
        ({"batch_size": 8}, "config.batch_size: 16 → 8"),
        ({"reward__sources": ("judge:polite", "judge:short")}, "config.reward.sources"),
        ({"eval__prompts": 32}, "config.eval.prompts: 64 → 32"),  # the toy trains on prompts that are not tested
        ({"steps": 6}, "has done 12 steps, and config.steps=6 are fewer"),
    ],
)
def test_another_run_is_refused_by_field_and_nothing_is_touched(recorded, fields, named):
    config, directory = recorded
    before = snapshot(directory)
    with pytest.raises(identity.AnotherRunError, match=named) as error:
        train.run(changed(config, **fields), str(directory))
    assert "Nothing there was changed" in str(error.value) and str(directory) in str(error.value)
    assert snapshot(directory) == before


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"steps": 20}, {"eval__every": 3}, {"eval__temperature": 0.5}, {"checkpoint__every": 7}, {"tensorboard": False},
        {"profile_steps": (1, 2)}, {"timed": True}, {"mesh__fsdp": 2}, {"micro__rollout": 4}, {"rollout__gather": True},
        {"rollout__unstack_layers": True}, {"policy__remat": "full"}, {"policy__chunk": 4}, {"reward__batch_size": 8},
        {"compare_with": ("raft",)}, {"ppo__kl": 0.1}, {"parm__r1": 8},
    ],
)  # fmt: skip
def test_what_leaves_the_record_true_is_let_through(recorded, fields):
    config, directory = recorded
    result = need_same(directory, train.methods.configure("static", changed(config, **fields)))
    assert set(result) == {name.replace("__", ".") for name in fields}


def test_parts_may_change_but_not_where_each_draws_dropout_masks_of_its_own(tmp_path):
    for dropout, says in ((0.0, None), (0.05, "config.micro.gradient: None → 2")):
        config = changed(base.default(), policy__lora_rank=2, policy__lora_dropout=dropout)
        directory = tmp_path / str(dropout)
        directory.mkdir()
        (directory / "config.json").write_text(config.to_json_best_effort())
        assert need_same(directory, changed(config, micro__rollout=2)) == {"micro.rollout": (None, 2)}
        if says is None:
            assert need_same(directory, changed(config, micro__gradient=2)) == {"micro.gradient": (None, 2)}
        else:
            with pytest.raises(identity.AnotherRunError, match=says):
                need_same(directory, changed(config, micro__gradient=2))


@pytest.mark.parametrize(("method", "field"), [("ric", "ric.offline_steps"), ("cpo", "dpo.sft_steps")])
def test_a_stage_that_follows_the_steps_says_how_to_go_on(method, field, tmp_path):
    config = changed(base.default(), steps=100, method=method, compare_with=())
    (tmp_path / "config.json").write_text(train.methods.configure(method, config).to_json_best_effort())
    more = train.methods.configure(method, changed(config, steps=200))
    with pytest.raises(identity.AnotherRunError, match=rf"to go on with more steps, add --config\.{field}=50"):
        need_same(tmp_path, more)
    more.update_from_flattened_dict({field: 50})
    assert need_same(tmp_path, more) == {"steps": (100, 200)}


def test_a_method_s_own_section_is_part_of_its_identity(tmp_path):
    config = train.methods.configure("soups", base.default())
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(identity.AnotherRunError, match="config.ppo.kl"):
        need_same(tmp_path, changed(config, ppo__kl=0.5))
    need_same(tmp_path, changed(config, dpo__beta=0.5))


def test_a_finished_run_is_left_as_it_is(recorded):
    config, directory = recorded
    peer = train.methods.configure("static", config)
    assert train.finished(directory, peer) == {"step": 12, "hypervolume": 0.5}
    before = snapshot(directory)
    results = train.train_and_evaluate(
        peer, train.methods.get("static"), None, directory
    )  # no task, so nothing is built
    assert results == {"step": 12, "hypervolume": 0.5, "compiled": 0}
    assert train.finished(directory, changed(peer, steps=20)) is None
    assert train.finished(directory, changed(peer, eval__temperature=0.5)) is None
    assert train.finished(directory, changed(peer, eval__every=5)) == {"step": 12, "hypervolume": 0.5}
    after = snapshot(directory)
    assert {path for path in after if after[path] != before.get(path)} <= {directory / "config.json"}
    assert json.loads(after[directory / "config.json"]) == json.loads(before[directory / "config.json"])


def test_evaluations_under_other_settings_are_set_aside(recorded):
    config, directory = recorded
    (directory / "evals").mkdir()
    (directory / "evals" / "000012.json").write_text("{}")
    train.take_over(directory, changed(config, eval__top_k=5), 12, True)
    assert [p.name for p in (directory / "evals_1").iterdir()] == ["000012.json"] and not (directory / "evals").exists()
    assert json.loads((directory / "config.json").read_text())["eval"]["top_k"] == 5


def test_a_run_whose_second_evaluation_was_cut_short_is_not_finished(recorded):
    """Its pareto.json is of the evaluation before, under settings that config.json no longer has."""
    config, directory = recorded
    peer = changed(train.methods.configure("static", config), eval__top_k=5)
    (directory / "pareto.json").write_text('{"step": 12, "points": [[0.5]]}')
    (directory / "evals").mkdir()
    (directory / "evals" / "000012.json").write_text('{"step": 12, "points": [[0.5]]}')
    train.take_over(directory, peer, 12, True)
    assert train.finished(directory, peer) is None
    (directory / "evals").mkdir()
    for points, is_finished in ([[0.7]], False), ([[0.5]], True):
        (directory / "evals" / "000012.json").write_text(json.dumps({"step": 12, "points": points}))
        assert (train.finished(directory, peer) is not None) == is_finished


def test_other_test_prompts_than_those_of_the_evaluations_are_refused(tmp_path):
    now, then = {"prompts": 2, "sha256": "b" * 64}, {"prompts": 2, "sha256": "a" * 64}
    (tmp_path / "evals").mkdir()
    path = tmp_path / "evals" / "000004.json"
    path.write_text(json.dumps({"evaluation_set": then}))
    with pytest.raises(ValueError, match="The test prompts have changed since .*000004.json: .*aaaa… and is bbbb"):
        train.need_same_prompts(tmp_path, now)
    for same in (then, None, now | {"prompts": 3}):
        train.need_same_prompts(tmp_path, same)
    path.write_text('{"evaluation_set"')
    with pytest.raises(ValueError, match="000004.json is damaged: delete it"):
        train.read_history(tmp_path)


def test_paths_to_the_same_place_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, other = {"data": {"path": "rows"}}, {"data": {"path": str(tmp_path / "x" / ".." / "rows")}}
    assert identity.differences(first, other) == {}
    assert identity.differences(first, {"data": {"path": "lines"}}) == {"data.path": ("rows", "lines")}
    assert identity.differences({"a": {}}, {"a": {"b": 1}}) == {"a.b": (None, 1)}


def test_readers_obey_the_same_rule_but_may_say_where_inputs_are(toy_run):
    config = base.default()
    config.update_from_flattened_dict(json_flat(toy_run))
    for field, value in (("optim.lr", 0.5), ("meal.net", False), ("seed", 3)):
        with pytest.raises(identity.AnotherRunError, match=f"config.{field}"):
            open_run(toy_run, changed(config, **{field: value}))
    need_same(toy_run, changed(config, data__path="/moved", steps=1), reading=True)


def json_flat(workdir, values=None, prefix=""):
    values = json.loads((workdir / "config.json").read_text()) if values is None else values
    out = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= json_flat(workdir, value, f"{prefix}{name}.")
        else:
            out[prefix + name] = tuple(value) if isinstance(value, list) else value
    return out


def test_comparison_fine_tuning_and_the_doctor_refuse_as_training_does(recorded, tmp_path):
    config, directory = recorded
    folder = tmp_path / "compared" / "0" / "static"
    folder.parent.mkdir(parents=True)
    directory.rename(folder)
    before = snapshot(tmp_path)
    for fields, named in (({"optim__lr": 0.5}, "optim.lr"), ({"steps": 6}, "config.steps=6")):
        with pytest.raises(identity.AnotherRunError, match=named):
            compare.run(changed(config, **fields), str(tmp_path / "compared"), ["static"], 1)
        [*_, line] = files.workdir(changed(config, **fields), str(folder))
        assert line.status == "fail" and named in line.detail
    with pytest.raises(identity.AnotherRunError, match="stage: 'align' → 'sft'"):
        sft.run(changed(config, stage="sft"), str(folder))
    [*_, line] = files.workdir(config, str(folder))
    assert "resumes from step 12" in line.detail
    assert snapshot(tmp_path) == before


HOLD = """
import sys, time
from meal_jax.runtime import identity
with identity.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_and_a_killed_one_leaves_no_lock(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"run is in use by another run \(process {first.pid}\)"):
            with identity.hold(tmp_path / "run"):
                pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with identity.hold(tmp_path / "run"), identity.hold(tmp_path / "run"):  # again, by the same process
            pass
        assert snapshot(tmp_path / "run") == {tmp_path / "run" / ".lock": b""}
    finally:
        first.kill()


def test_a_run_that_an_older_version_recorded_is_the_same_run(tmp_path):
    """Fields under former names, and −1 for what other fields decide."""
    (tmp_path / "config.json").write_bytes((ROOT / "tests" / "saved" / "toy" / "config.json").read_bytes())
    assert '"beside"' in (tmp_path / "config.json").read_text()
    config = read_config(tmp_path)
    assert need_same(tmp_path, config) == {}
    with pytest.raises(identity.AnotherRunError, match=r"config\.meal\.stats_window: 10000\.0 → 5\.0"):
        need_same(tmp_path, changed(config, meal__stats_window=5.0))
