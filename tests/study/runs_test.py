"""The table of runs: configurations and commands agree, and another configuration's folder is refused before training."""

import importlib
import json
import re
import sys

import pytest

from meal_jax import command, methods
from meal_jax.runtime.identity import AnotherRunError
from meal_jax.study import plan, runs
from meal_jax.study.plan import Variant


@pytest.fixture
def study():
    c = plan.default()
    c.base, c.seeds, c.seed = "configs/toy.py", 2, 3
    c.changes = ("eval.every=50",)
    c.variants = (
        Variant("meal", "Meal"),
        Variant("lam_1", "λ = 1", changes=("meal.lam=1",)),
        Variant("s", "s", "static"),
    )
    return c


def test_the_table_goes_seed_by_seed(study, tmp_path):
    table = runs.table(study, tmp_path)
    assert [run.name for run in table] == ["meal/3", "lam_1/3", "s/3", "meal/4", "lam_1/4", "s/4"]
    assert table[1].folder == tmp_path / "lam_1" / "3" and not any(run.finished for run in table)
    assert not any(tmp_path.iterdir())
    text = runs.shown(table[1])
    assert text.startswith(
        "python -m meal_jax.main --config=configs/toy.py --config.eval.every=50 --config.meal.lam=1 "
    )


def test_a_runs_command_asks_for_the_configuration_that_the_table_looks_for(study, tmp_path, monkeypatch):
    """config_flags' own reading of the fields against `configuration`'s, as JSON."""
    from absl import flags
    from ml_collections import config_flags

    for variant in study.variants:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        monkeypatch.setattr(
            sys, "argv", ["main", *runs.arguments(study, variant, 0, tmp_path)[2:]]
        )  # config_flags reads it
        values(sys.argv)
        trained = methods.configure(values.config.method, values.config)
        assert json.loads(trained.to_json()) == json.loads(runs.configuration(study, variant).to_json())
        assert trained.compare_with == () and trained.eval.every == 50


def test_none_is_none_where_a_field_may_be_as_in_a_runs_command(study, tmp_path):
    variant = Variant("v", "v", changes=("data.system=None", "meal.accept_share=0.3"))
    config = runs.configuration(study, variant)
    assert config.data.system is None and config.meal.accept_share == 0.3
    argv = ["main", *runs.arguments(study, variant, 0, tmp_path)[2:]]
    to_none = command._set_to_none(argv, command.read_config(argv))
    assert list(to_none.values()) == ["data.system"]
    with pytest.raises(ValueError, match=r"variant w: config\.reward\.judge='None' is a text of four letters"):
        runs.configuration(study, Variant("w", "w", changes=("reward.judge=None",)))


def test_a_folder_of_another_run_is_refused(study, tmp_path):
    other = runs.configuration(study, study.variants[0])
    other.seed, other.meal.tau = 4, 0.7
    (tmp_path / "meal" / "4").mkdir(parents=True)
    (tmp_path / "meal" / "4" / "config.json").write_text(other.to_json_best_effort())
    with pytest.raises(AnotherRunError, match=r"config\.meal\.tau: 0\.7 → 0\.1"):
        runs.table(study, tmp_path)


def test_a_finished_run_is_known(study, tmp_path):
    config = runs.configuration(study, study.variants[1])
    config.seed = 3
    folder = tmp_path / "lam_1" / "3"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    (folder / "pareto.json").write_text(json.dumps({"step": config.steps}))
    assert [run.name for run in runs.table(study, tmp_path) if run.finished] == ["lam_1/3"]


def test_a_wrong_variant_or_base_is_named(study, tmp_path):
    study.variants = (Variant("bad", "bad", changes=("meal.tua=1",)),)
    with pytest.raises(ValueError, match=r"variant bad: changes=meal\.tua=1 is not field=value"):
        runs.table(study, tmp_path)
    study.variants = (Variant("bad", "bad", changes=("meal.tau=-1.0",)),)
    with pytest.raises(ValueError, match="variant bad: "):
        runs.table(study, tmp_path)
    study.base = "configs/toi.py"
    with pytest.raises(FileNotFoundError, match=r"configs/toi\.py' is not a configuration file here"):
        runs.table(study, tmp_path)


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        ("method=raft", r"Variant\(…, method=NAME\)"),
        ("seed=7", "config.seeds"),
        ("compare_with=('raft',)", "a Variant"),
    ],
)
def test_a_change_that_the_study_would_override_is_refused(study, tmp_path, change, instead):
    study.variants = (Variant("raft", "RAFT", changes=(change,)),)
    with pytest.raises(ValueError, match=rf"variant raft: changes={re.escape(change)}: the study sets .*{instead}"):
        runs.table(study, tmp_path)
    study.variants, study.changes = (Variant("meal", "Meal"),), (change,)
    with pytest.raises(ValueError, match=rf"variant meal: .*{instead}"):
        runs.table(study, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "toy",
        "toy_base",
        "toy_k3",
        "toy_attainable",
        "stories",
        "stories_attainable",
        "stories_k3",
        "stories_signal",
        "generalisation",
    ],
)
def test_every_variant_of_a_shipped_study_can_run(name, tmp_path):
    study = importlib.import_module(f"configs.study.{name}").get_config()
    study.seeds = 1
    configs = {v.name: runs.configuration(study, v).to_json() for v in study.variants}
    assert len(set(configs.values())) == len(configs)  # no run is paid for twice


def test_on_the_toy_static_targets_are_meal_without_both():
    study = importlib.import_module("configs.study.toy").get_config()
    static = runs.configuration(study, study.variants[1])
    both = runs.configuration(study, Variant("both", "", changes=("meal.net=False", "meal.adapt=False")))
    differing = [name for name in command.leaves(static) if static_value(static, name) != static_value(both, name)]
    assert differing == ["meal.lam", "method"]  # λ is not read without adaptation


def static_value(config, name):
    for part in name.split("."):
        config = config[part]
    return config
