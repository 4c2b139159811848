"""The comparison: what is run and what is not, the table's figures, sweeps. Training is replaced by canned results."""

import json
import shutil

import numpy as np
import pytest

from configs import toy
from meal_jax import build, compare, methods, train
from meal_jax.pareto import front
from meal_jax.report import write as report


@pytest.fixture
def canned(monkeypatch):
    """Replaces training by results that depend on method and seed; gives the list of what was asked for."""
    asked = []

    def fake(config, method, task, folder):
        asked.append((config.method, config.seed, config.meal.tau))
        meal = config.method == "meal"
        volume = 0.5 + 0.01 * config.seed + 0.1 * meal
        preferences = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])

        def actual(volume):
            out = {
                "hypervolume": volume, "share_of_true_hypervolume": volume, "mean_inner_product": 0.4, "sparsity": 0.1,
                "spacing": 0.0, "non_dominated": 1.0, "truncated": 0.25, "repetitive": 0.0,
                "monotonicity": [1.0, 0.5 + 0.1 * config.seed], "log_likelihood": -1.5,
            }  # fmt: skip
            for field, value in list(out.items()):
                out[f"{field}_interval"] = [(np.array(value) - 0.05).tolist(), (np.array(value) + 0.05).tolist()]
            out["distinct_2"] = 0.3 + 0.01 * config.seed  # it has no interval over prompts
            return out | {"preferences": preferences.tolist(), "points": (volume * preferences).tolist()}

        (folder / "evals").mkdir(parents=True)
        history = []
        for step, share in ((0, 0.0), (2, 0.5), (4, 1.0)):
            (folder / "evals" / f"{step:06d}.json").write_text(json.dumps({"step": step} | actual(share * volume)))
            budget = {"rollout_tokens": 250 * step * (1 + meal), "updates": 2 * step, "reward_calls": 50 * step,
                      "gradient_tokens": 500 * step, "models": 1, "forwards_per_token": 1}  # fmt: skip
            history.append({"step": step, "hypervolume": share * volume, "budget": budget})
        result = actual(volume) | {
            "seconds_training": 10.0 + config.seed,
            "budget": history[-1]["budget"],
            "history": history,
        }
        (folder / "config.json").write_text(config.to_json_best_effort())  # as every run, before its results
        (folder / "pareto.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(train, "train_and_evaluate", fake)
    return asked


@pytest.fixture
def unknown_scale(canned, monkeypatch):
    """As `canned`, with rewards whose scale nobody knows: a run's own first evaluation fixes the point -(1 + seed). Gives
    the list of (seed, the point that a run was given)."""
    given, fake, build_task = [], train.train_and_evaluate, build.build_task

    def measured(config, method, task, folder):
        given.append((config.seed, task.reference.tolist()))
        result = fake(config, method, task, folder)
        point = {"reference": np.where(np.isnan(task.reference), -1.0 - config.seed, task.reference).tolist()}
        for path in (*(folder / "evals").iterdir(), folder / "pareto.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | point))
        return result | point

    def built(config):
        return build_task(config)._replace(reference=np.full(2, np.nan), truth=None)

    monkeypatch.setattr(train, "train_and_evaluate", measured)
    monkeypatch.setattr(build, "build_task", built)
    monkeypatch.setattr(report, "write_and_say", lambda root: None)
    return given


def test_every_method_meets_every_seed_once_and_what_is_done_is_not_run_again(canned, tmp_path):
    config = toy.get_config()
    compare.run(config, str(tmp_path), ["meal", "static"], 3)
    assert [(method, seed) for method, seed, _ in canned] == [(m, s) for s in range(3) for m in ("meal", "static")]
    canned.clear()
    out = compare.run(config, str(tmp_path), ["static"], 2, equal="tokens")
    assert out["runs"] == {"static targets": ["0/static", "1/static"]} and not canned
    compare.run(config, str(tmp_path), ["meal", "static"], 4)
    assert [(method, seed) for method, seed, _ in canned] == [("meal", 3), ("static", 3)]


def test_measures_are_medians_with_intervals_over_seeds(canned, tmp_path):
    meal = compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 3)["methods"]["meal"]
    assert meal["hypervolume"] == pytest.approx(0.61)
    assert meal["by_seed"]["hypervolume"] == pytest.approx([0.6, 0.61, 0.62])
    low, high = meal["hypervolume_interval"]
    assert low == pytest.approx(0.6) and high == pytest.approx(0.62) and meal["seconds_training"] == 11.0
    np.testing.assert_allclose(meal["monotonicity"], [1.0, 0.6])
    np.testing.assert_allclose(meal["monotonicity_interval"], [[1.0, 0.5], [1.0, 0.7]])  # [low, high], each [K]
    np.testing.assert_allclose(meal["by_seed"]["hypervolume_interval"], [[0.55, 0.65], [0.56, 0.66], [0.57, 0.67]])
    assert meal["distinct_2"] == pytest.approx(0.31) and meal["distinct_2_interval"] == pytest.approx([0.3, 0.32])


def test_the_tables_say_what_was_reached_and_spent(canned, tmp_path):
    out = compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 3)
    reached, spent, paired = (tmp_path / "compare.md").read_text().split("\n\n")
    assert "| Meal | 0.610 (0.600 … 0.620) | 0.610 (" in reached and "| 1.00, 0.60 |" in reached
    assert "| pairs in order |" in reached and "| 0.25 | 0.00 | -1.50 | 0.31 |" in reached
    assert "| Meal | 2,000 | 200 | 2,000 | 8 | 1 | 1 | 11 |" in spent
    for table in (reached, spent):
        lines = table.strip().splitlines()
        assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert len(paired.splitlines()) == 2 * (len(out["methods"]) - 1) and "too few seeds" in paired
    assert out["paired"].keys() == {"mean_inner_product", "hypervolume"}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("fronts.png", "curves.png"))


def test_at_equal_spending_each_is_taken_at_its_last_evaluation_within_it(canned, tmp_path):
    out = compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 2, equal="tokens")
    meal, static = out["methods"]["meal"], out["methods"]["static"]
    # Meal samples twice as many tokens a step here: within static's 1,000 it is at its step 2.
    assert (meal["budget"]["rollout_tokens"], static["budget"]["rollout_tokens"]) == (1000, 1000)
    assert meal["hypervolume"] == pytest.approx(0.3025) and static["hypervolume"] == pytest.approx(0.505)
    assert meal["seconds_training"] is None and static["seconds_training"] == 10.5
    out = compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 2, equal="updates")
    assert out["methods"]["meal"]["hypervolume"] == pytest.approx(0.605)  # both take two updates a step
    assert len(canned) == 4
    for stem in ("compare_tokens.json", "compare_tokens.md", "fronts_tokens.png", "curves_updates.png"):
        assert (tmp_path / stem).exists()
    assert not (tmp_path / "compare.md").exists()


def test_new_runs_take_the_reference_point_of_finished_ones(unknown_scale, tmp_path):
    config = toy.get_config()
    config.seed = 1
    compare.run(config, str(tmp_path), ["static"], 1)
    config.seed = 0
    out = compare.run(config, str(tmp_path), ["static"], 2)  # seed 0 comes first in the loop, seed 1 has the point
    assert unknown_scale[1:] == [(0, [-2.0, -2.0])] and out["reference"] is None
    assert "Hypervolumes are from" not in (tmp_path / "compare.md").read_text()


def test_a_run_that_resumes_keeps_the_point_of_its_earlier_evaluations(unknown_scale, tmp_path):
    config = toy.get_config()
    for seed in (0, 1):  # each alone, so that each has its own point
        config.seed = seed
        compare.run(config, str(tmp_path / str(seed)), ["static"], 1)
    shutil.copytree(tmp_path / "1" / "1", tmp_path / "0" / "1")
    (tmp_path / "0" / "1" / "static" / "pareto.json").unlink()
    config.seed = 0
    with pytest.raises(FileExistsError):  # the canned training begins anew
        compare.run(config, str(tmp_path / "0"), ["static"], 2)
    assert unknown_scale[-1] == (1, [-2.0, -2.0])


@pytest.mark.parametrize("sweep", [None, "meal.tau:0.1"])
def test_fronts_measured_from_different_points_are_moved_to_one(unknown_scale, tmp_path, sweep):
    config = toy.get_config()
    for method, seed in (("static", 0), ("raft", 1)):  # another seed in the same folder has another point
        config.seed = seed
        compare.run(config, str(tmp_path / method), [method], 1, sweep)
    both = tmp_path / "both" / "0"
    name = "raft" if sweep is None else "raft_meal.tau=0.1"
    shutil.copytree(tmp_path / "static" / "0", both)
    shutil.copytree(tmp_path / "raft" / "1" / name, both / name)
    for path in (*both.glob(f"{name}/evals/*.json"), both / name / "pareto.json"):  # the same front from another point
        static = both / name.replace("raft", "static") / path.relative_to(both / name)
        path.write_text(json.dumps(json.loads(static.read_text()) | {"reference": [-2.0, -3.0]}))
    (both / name / "config.json").write_text(
        (both / name / "config.json").read_text().replace('"seed": 1', '"seed": 0')
    )
    config.seed = 0
    out = compare.run(config, str(tmp_path / "both"), ["static", "raft"], 1, sweep)
    assert out["reference"] == [-2.0, -3.0]
    points = 0.5 * np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    expected = front.hypervolume(points, np.array([-2.0, -3.0]))
    for method in out["methods"].values():
        assert method["hypervolume"] == pytest.approx(expected) and "hypervolume_interval" not in method
        assert method["mean_inner_product_interval"] == pytest.approx([0.35, 0.45])
    text = (tmp_path / "both" / "compare.md").read_text()
    assert f"| {expected:.3f} | – | 0.400 (" in text  # the number alone; the share was of another point
    assert "- Hypervolumes are from (-2, -3), the lowest of the points" in text
    assert (tmp_path / "both" / "sweep.png").exists() == (sweep is not None)


def test_one_seed_has_the_intervals_over_its_prompts(canned, tmp_path):
    out = compare.run(toy.get_config(), str(tmp_path), ["static"], 1)["methods"]["static"]
    assert out["hypervolume_interval"] == pytest.approx([0.45, 0.55]) and "distinct_2_interval" not in out
    np.testing.assert_allclose(out["monotonicity_interval"], [[0.95, 0.45], [1.05, 0.55]])


def test_a_sweep_runs_one_field_over_its_values(canned, tmp_path):
    out = compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 1, sweep="meal.tau:0.05,0.5")
    assert [(method, tau) for method, _, tau in canned] == [
        ("meal", 0.05), ("meal", 0.5), ("static", 0.05), ("static", 0.5),
    ]  # fmt: skip
    assert list(out["methods"])[:2] == ["meal meal.tau=0.05", "meal meal.tau=0.5"]
    assert "| Meal, tau 0.05 |" in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_a_sweep_of_what_the_benchmark_reads_builds_it_anew(canned, tmp_path, monkeypatch):
    trained, fake = [], train.train_and_evaluate

    def remembered(config, method, task, folder):
        trained.append((task.conditioning.slots, id(task.test.tokens)))
        return fake(config, method, task, folder)

    monkeypatch.setattr(train, "train_and_evaluate", remembered)
    compare.run(toy.get_config(), str(tmp_path / "slots"), ["static"], 1, sweep="conditioning.slots:1,4")
    assert [slots for slots, _ in trained] == [1, 4]
    trained.clear()
    compare.run(toy.get_config(), str(tmp_path / "tau"), ["static"], 1, sweep="meal.tau:0.1,0.5")
    assert len({prompts for _, prompts in trained}) == 1  # built once: it reads no field of the method


def test_values_of_a_sweep_are_read_by_their_fields_type():
    def swept(sweep):
        return [v.config for v in compare.variants(toy.get_config(), ["meal"], sweep).values()]

    assert [c.meal.net for c in swept("meal.net:True,False")] == [True, False]
    assert [c.meal.accept_share for c in swept("meal.accept_share:None,0.3")] == [None, 0.3]
    assert [c.conditioning.kind for c in swept("conditioning.kind:text,prefix")] == ["text", "prefix"]
    assert [c.meal.lam for c in swept("meal.lam:0,1")] == [0.0, 1.0]


def test_runs_with_evaluations_at_other_steps_are_drawn_where_all_have_one(canned, tmp_path):
    compare.run(toy.get_config(), str(tmp_path), ["static"], 1)
    path = tmp_path / "0" / "static" / "pareto.json"
    result = json.loads(path.read_text())
    result["history"].insert(2, result["history"][1] | {"step": 3})  # as of a run that ended there and was made longer
    path.write_text(json.dumps(result))
    compare.run(toy.get_config(), str(tmp_path), ["static"], 2)
    histories = [json.loads((tmp_path / s / "static" / "pareto.json").read_text())["history"] for s in "01"]
    assert [[h["step"] for h in history] for history in compare.common_history(histories)] == [[0, 2, 4]] * 2


def test_a_run_that_was_evaluated_again_has_nothing_at_equal_tokens(canned, tmp_path):
    compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 1)
    path = tmp_path / "0" / "meal" / "pareto.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"history": result["history"][-1:]}))
    with pytest.raises(ValueError, match=r"meal has no evaluation up to 1,000 tokens sampled .*--equal=steps"):
        compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 1, equal="tokens")
    assert compare.run(toy.get_config(), str(tmp_path), ["meal", "static"], 1)


def test_all_means_all_and_what_cannot_be_is_named():
    assert list(compare.variants(toy.get_config(), ["all"], None)) == list(methods.METHODS)
    with pytest.raises(ValueError, match="'best' is not one of meal, static"):
        compare.variants(toy.get_config(), ["best"], None)
    with pytest.raises(ValueError, match="meal.tua cannot be set to '1'"):
        compare.variants(toy.get_config(), ["meal"], "meal.tua:1")
    with pytest.raises(ValueError, match="cannot be set to 'warm'"):
        compare.variants(toy.get_config(), ["meal"], "meal.tau:warm")
    with pytest.raises(ValueError, match="sets method itself; use --methods=NAME,NAME instead"):
        compare.variants(toy.get_config(), ["meal"], "method:static,raft")
    with pytest.raises(ValueError, match="sets seed itself; use --seeds=COUNT"):
        compare.variants(toy.get_config(), ["meal"], "seed:1,2")
    with pytest.raises(ValueError, match="names no values"):
        compare.variants(toy.get_config(), ["meal"], "meal.tau:")


@pytest.mark.parametrize(
    ("methods_", "sweep", "changes", "message"),
    [
        (["meal"], "meal.tau:1,0", {}, r"meal meal\.tau=0: config\.meal\.tau=0\.0 must be above 0"),
        (["meal"], "meal.baseline:pool,bogus", {}, r"config\.meal\.baseline='bogus' is not one of"),
        (["static", "meal"], None, {"sampling.top_k": 5, "method": "static"}, r"meal: config\.meal\.meta=utility"),
        (["morlhf"], None, {"sampling.top_p": 0.9, "method": "static"}, "morlhf: morlhf learn by PPO"),
        (["raft", "ric"], None, {"meal.gap": (0.4, 0.6)}, "ric: .*'ric' does not draw"),
    ],
)
def test_every_configuration_that_is_compared_is_checked_before_one_trains(
    canned, tmp_path, methods_, sweep, changes, message
):
    config = toy.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        compare.run(config, str(tmp_path / "never"), methods_, 1, sweep=sweep)
    assert not (tmp_path / "never").exists()
