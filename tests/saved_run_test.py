"""A run's workdir opened again: the configuration as it was, the state to the bit, on any devices, and nothing written."""

import json
import shutil

import jax
import numpy as np
import pytest

from meal_jax import config as base
from meal_jax.runtime import checkpoint
from meal_jax.saved_run import open_run, read_config, read_preference


def listing(directory):
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_a_configuration_comes_back_with_its_types(tmp_path):
    config = base.default()
    config.objectives, config.compare_with, config.optim.lr, config.seed = ("a", "b", "c"), (), 3e-4, 7
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    again = read_config(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert isinstance(again.objectives, tuple) and isinstance(again.compare_with, tuple) and again.is_locked


def test_the_newest_state_is_read_to_the_bit_on_one_device_or_several_and_nothing_is_written(toy_run):
    before = listing(toy_run)
    opened = checkpoint.open_checkpoints(toy_run / "checkpoints", keep=None)
    folder = toy_run / "checkpoints" / "3"
    record = json.loads(checkpoint.ocp.checkpointables_metadata(folder).custom_metadata["record"])
    saved = {path: digest for path, (_, digest) in record["leaves"].items()}
    first, two = open_run(toy_run), open_run(toy_run, devices=2)
    for run, devices in ((first, 1), (two, 2)):
        assert run.step == 3 == int(run.state.step) == checkpoint.steps(opened)[-1]
        assert checkpoint._digests(run.state) == saved
        assert len(run.state.policy["transformer"]["embedding"].devices()) == devices
    assert first.method.label == "Meal" and first.task.objectives == ("first", "second")
    assert listing(toy_run) == before


def test_frozen_parts_are_those_of_training(assistant_run, chat_model):
    from meal_jax.hf import pretrained

    run = open_run(assistant_run("text"))
    weights = pretrained.load_params(chat_model, pretrained.load_config(chat_model))
    jax.tree.map(np.testing.assert_array_equal, run.frozen.policy["transformer"], weights)
    assert "lora_a" in run.state.policy["transformer"]["layers"]["attention"]["q"]


def test_fields_may_be_changed_and_those_of_an_older_version_have_their_defaults(tmp_path, assistant_run):
    values = json.loads((assistant_run("text") / "config.json").read_text())
    del values["meal"]["rho"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_config(tmp_path, ["data.path=/else", "eval.prompts=3", "objectives=('b', 'a')", "optim.lr=1"])
    assert config.meal.rho == base.default().meal.rho
    assert (config.data.path, config.eval.prompts, config.objectives) == ("/else", 3, ("b", "a"))
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    for change in ("data.path", "data.paths=x", "eval.prompts=many", "nothing.at=1"):
        with pytest.raises(ValueError, match=f"--set={change} is not field=value"):
            read_config(tmp_path, [change])
    with pytest.raises(ValueError, match=r"meal\.tau=-1"):
        read_config(tmp_path, ["meal.tau=-1"])


def test_a_workdir_that_is_none_is_refused_by_name(tmp_path, toy_run):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        open_run(tmp_path / "none")
    shutil.copytree(toy_run, tmp_path / "runs" / "a", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json\. These are: .*runs/a"):
        open_run(tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match="runs/a holds no checkpoint yet: .* every 100 steps"):
        open_run(tmp_path / "runs" / "a")
    with pytest.raises(ValueError, match="devices=99: there are 8"):
        open_run(toy_run, devices=99)
    for text, message in (("{", "not valid JSON"), ('{"stepz": 1}', "a field stepz"), ('{"steps": "a"}', "steps='a'")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_run(tmp_path)


def test_preferences_are_read_or_refused_with_what_would_do():
    np.testing.assert_allclose(read_preference("0.3,0.7", ("a", "b")), [0.3, 0.7])
    np.testing.assert_allclose(read_preference("1, 0,0", ("a", "b", "c")), [1, 0, 0])
    assert read_preference("0.3333,0.3333,0.3333", ("a", "b", "c")).sum() == pytest.approx(1, abs=1e-12)
    for text, message in (
        ("0.5", r"'0.5' has 1 weight.*: needed are 2 weights, of a, b,.*such as 0.5,0.5"),
        ("0.5,x", "not numbers with commas"),
        ("-0.5,1.5", "negative"),
        ("nan,1", "not a number"),
        ("0.5,0.6", "sums to 1.1.*0.4545,0.5455 would do"),
        ("0,0", "sums to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_preference(text, ("a", "b"))
