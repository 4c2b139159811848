"""What is read from finished runs, and measures at equal spending by hand."""

import json

import numpy as np
import pytest

from meal_jax.study import measures, plan
from meal_jax.study.plan import Question


def test_at_equal_tokens_the_one_that_spent_more_is_set_back_between_its_evaluations(write_runs):
    root = write_runs("meal", [0.8], tokens=(0, 100, 200))
    write_runs("static", [0.6], tokens=(0, 80, 160))
    meal, static = (measures.read(root / name / "0") for name in ("meal", "static"))
    assert measures.pair(meal, static, "hypervolume", "updates") == pytest.approx((0.8, 0.6))
    # At 160 tokens Meal is 0.6 of the way from 0.4 to 0.8.
    assert measures.pair(meal, static, "hypervolume", "tokens") == pytest.approx((0.64, 0.6))
    assert measures.pair(static, meal, "mean_inner_product", "tokens") == pytest.approx((0.3, 0.32))
    assert measures.pair(meal, static, "steps_to_90", "tokens") == measures.pair(meal, static, "steps_to_90", "updates")
    assert np.isnan(measures.pair(meal, static, "log_likelihood", "tokens")).all()


def test_pairs_are_of_the_seeds_that_both_have_and_of_numbers(write_runs):
    root = write_runs("meal", [0.8, 0.7, 0.6])
    write_runs("static", [0.5, 0.4])
    meal = {seed: measures.read(root / "meal" / str(seed)) for seed in (0, 1, 2)}
    static = {seed: measures.read(root / "static" / str(seed)) for seed in (0, 1)}
    assert measures.pairs(meal, static, "hypervolume", "updates") == {0: (0.8, 0.5), 1: (0.7, 0.4)}
    assert measures.pairs(meal, static, "log_likelihood", "updates") == {}


def test_hypervolumes_from_different_points_are_refused(write_runs):
    root = write_runs("meal", [0.8])
    write_runs("static", [0.6], reference=(-1.0, 0.0))
    meal, static = (measures.read(root / name / "0") for name in ("meal", "static"))
    with pytest.raises(ValueError, match=r"\[0\.0, 0\.0\] and from \[-1\.0, 0\.0\] cannot be compared"):
        measures.pair(meal, static, "hypervolume", "updates")
    assert measures.pair(meal, static, "mean_inner_product", "updates") == pytest.approx((0.4, 0.3))


def test_runs_with_points_of_their_own_are_measured_again_from_the_lowest(write_runs):
    root = write_runs("meal", [0.8, 0.7], reference=(0.0, -0.5))
    write_runs("static", [0.6], reference=(-1.0, 0.0))
    records = {
        "meal": {seed: measures.read(root / "meal" / str(seed)) for seed in (0, 1)},
        "static": {0: measures.read(root / "static" / "0")},
    }
    moved, reference = measures.from_one_point(records)
    assert reference == [-1.0, -0.5]
    # Strips under the points v·(0, 1), v·(½, ½) and v·(1, 0), from (-1, -½).
    by_strips = {v: 1 * (0.5 + v) + v / 2 * (0.5 + v / 2) + v / 2 * 0.5 for v in (0.4, 0.6, 0.8)}
    meal = moved["meal"][0]
    np.testing.assert_allclose(meal.values["hypervolume"], [0.5, by_strips[0.4], by_strips[0.8]])
    assert meal.final["hypervolume"] == pytest.approx(by_strips[0.8]) and "hypervolume_interval" not in meal.final
    assert [h["hypervolume"] for h in meal.final["history"]] == pytest.approx(list(meal.values["hypervolume"]))
    both = measures.pairs(moved["meal"], moved["static"], "hypervolume", "updates")
    assert both == {0: (pytest.approx(by_strips[0.8]), pytest.approx(by_strips[0.6]))}
    alike, none = measures.from_one_point({"meal": records["meal"]})
    assert none is None and alike["meal"] is records["meal"]


def test_a_run_that_was_evaluated_again_has_no_value_before(write_runs):
    root = write_runs("meal", [0.8], tokens=(0, 100, 200))
    write_runs("static", [0.6], tokens=(0, 80, 160))
    path = root / "meal" / "0" / "pareto.json"
    final = json.loads(path.read_text())
    path.write_text(json.dumps(final | {"history": final["history"][-1:]}))
    meal, static = ({0: measures.read(root / name / "0")} for name in ("meal", "static"))
    assert measures.pairs(meal, static, "hypervolume", "tokens") == {}
    assert measures.pairs(meal, static, "hypervolume", "updates") == {0: (0.8, 0.6)}


def test_steadiness_of_a_variant_is_the_median_and_the_share_of_collapsed_runs(write_runs):
    fall = np.r_[np.linspace(0, 1, 10), np.zeros(10)]
    root = write_runs("meal", [0.8, 0.7], utility=fall)
    write_runs("flat", [0.5], utility=np.zeros(20))
    steady = measures.steady([measures.read(root / "meal" / s) for s in "01"] + [measures.read(root / "flat" / "0")])
    assert steady["collapse_rate"] == pytest.approx(2 / 3) and steady["lost"] == 1.0
    assert steady["steps_to_90"] is None  # none ends above its beginning
    assert steady["grad_norm_variance"] == pytest.approx(0.25 * 16 / 15)


def test_the_gaps_inner_product_is_of_its_preferences_alone(write_runs):
    root = write_runs("meal", [0.8])
    record = measures.read(root / "meal" / "0", (0.4, 0.6))
    np.testing.assert_allclose(record.values["gap_inner_product"], [0.0, 0.4 / 2, 0.8 / 2])  # v · (½, ½) · (½, ½)
    assert record.final["gap_inner_product"] == pytest.approx(0.4)
    assert np.isnan(measures.read(root / "meal" / "0").values["gap_inner_product"]).all()
    study = plan.default()
    study.questions = (Question("q", "a", "b", "gap_inner_product"),)
    with pytest.raises(ValueError, match="q is about the preferences of a gap, and config.gap names none"):
        measures.check(study)
    study.gap = (0.7, 0.3)
    with pytest.raises(ValueError, match="the smaller first"):
        measures.check(study)


def test_a_question_about_no_measure_is_refused():
    study = plan.default()
    study.questions = (Question("q", "a", "b", "hypervolumes"),)
    with pytest.raises(ValueError, match="q is about 'hypervolumes', which is none of mean_inner_product, hypervolume"):
        measures.check(study)


def test_a_run_with_a_gap_in_its_metrics_has_no_measures_of_training_and_that_is_said(write_runs, caplog):
    folder = write_runs("meal", [0.8]) / "meal" / "0"
    whole = measures.read(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:7], lines[7][:9], *lines[8:]]))
    cut = measures.read(folder)
    assert np.isfinite(whole.steadiness.utility_noise) and np.isnan(cut.steadiness.utility_noise)
    assert "metrics.jsonl lacks the rows of 1 of 20 steps, step 7 first" in caplog.text
    assert measures.steady([cut])["collapse_rate"] is None  # and not 0: nobody saw it train
    fallen = measures.read(
        write_runs("fallen", [0.8], utility=np.r_[np.linspace(0, 1, 10), np.zeros(10)]) / "fallen" / "0"
    )
    assert measures.steady([cut, fallen])["collapse_rate"] == 1.0
