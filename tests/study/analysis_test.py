"""Verdicts for a difference that is known, for none, and where the seeds could not have told."""

import shutil

import numpy as np
import pytest

from meal_jax.study import analysis, measures, plan
from meal_jax.study.plan import Question, Variant
from tests.study.conftest import write_run


def study_of(*questions):
    c = plan.default()
    c.base = "configs/toy.py"
    c.variants = (Variant("meal", "Meal"), Variant("static", "static targets", "static"), Variant("no_net", "no net"))
    c.questions = questions
    return c


def read(root, seeds):
    return {v: {s: measures.read(root / v / str(s)) for s in range(n)} for v, n in seeds.items()}


NOISE = 0.01 * np.array([0.3, -1.2, 0.8, 0.1, -0.4, 1.1, -0.9, 0.5])
BASE = 0.5 + 0.05 * np.arange(8) / 7


def test_a_known_difference_is_found_and_none_is_not(write_runs):
    root = write_runs("meal", BASE + 0.1 + NOISE)
    write_runs("static", BASE)
    write_runs("no_net", BASE + 0.1)
    study = study_of(
        Question("static", "meal", "static", "hypervolume"), Question("net", "meal", "no_net", "hypervolume"),
        Question("slow", "meal", "static", "grad_norm_variance"),
    )  # fmt: skip
    content = analysis.analyse(study, read(root, {"meal": 8, "static": 8, "no_net": 8}))
    rows = content["questions"]["updates"]
    assert rows["static"]["mean"] == pytest.approx(0.1 + NOISE.mean()) and rows["static"]["seeds"] == list(range(8))
    assert rows["static"]["p"] == pytest.approx(2 / 2**8) and rows["static"]["adjusted"] == pytest.approx(3 * 2 / 2**8)
    assert rows["static"]["sentence"].startswith("Meal is ahead of static targets in hypervolume: +0.100 (")
    assert "Meal and no net are not told apart in hypervolume" in rows["net"]["sentence"]
    assert "could have been found" in rows["net"]["sentence"]
    assert [analysis.ahead(row) for row in rows.values()] == ["ahead", "not told apart", "not told apart"]
    assert (
        rows["slow"]["effect"] is None and rows["slow"]["p"] == 1.0
    )  # the same in every run: no spread, no effect size
    assert list(content["questions"]["tokens"]) == ["static", "net"]  # training's measures are of whole runs
    assert content["questions"]["tokens"]["static"]["adjusted"] == pytest.approx(2 * 2 / 2**8)
    variant = content["variants"]["static"]
    assert variant["worst_seed"] == 0 and variant["worst_hypervolume"] == 0.5 and variant["worst_inner_product"] == 0.25


def test_behind_and_ahead_where_lower_is_better(write_runs):
    root = write_runs("meal", BASE)
    write_runs("static", BASE + 0.1 + NOISE)
    records = read(root, {"meal": 8, "static": 8})
    for seed, record in records["meal"].items():
        record.values["truncated"][-1] = 0.1 + 0.001 * seed
    for record in records["static"].values():
        record.values["truncated"][-1] = 0.3
    study = study_of(
        Question("volume", "meal", "static", "hypervolume"), Question("cut", "meal", "static", "truncated")
    )
    rows = analysis.analyse(study, records)["questions"]["updates"]
    assert [analysis.ahead(row) for row in rows.values()] == ["behind", "ahead"]
    assert "Meal is behind static targets in hypervolume" in rows["volume"]["sentence"]
    assert "Meal is ahead of static targets in truncated answers: -0.19" in rows["cut"]["sentence"]
    assert "ahead in 8 of 8 seeds" in rows["cut"]["sentence"] and "ahead in 0 of 8 seeds" in rows["volume"]["sentence"]


def test_seeds_that_could_not_have_told_are_said_to_be_too_few(write_runs):
    root = write_runs("meal", (BASE + 0.1)[:6])
    write_runs("static", BASE[:6] + 0.001 * np.arange(6))
    two = study_of(*(Question(f"q{i}", "meal", "static", "hypervolume") for i in range(2)))
    row = analysis.analyse(two, read(root, {"meal": 6, "static": 6}))["questions"]["updates"]["q0"]
    assert row["smallest_p"] == row["adjusted"] == pytest.approx(2 * 2 / 2**6)
    assert (
        row["sentence"].endswith("6 seeds are too few for 2 questions at once.")
        and analysis.ahead(row) == "not told apart"
    )
    one = study_of(Question("q", "meal", "static", "hypervolume"))
    row = analysis.analyse(one, read(root, {"meal": 6, "static": 6}))["questions"]["updates"]["q"]
    assert analysis.ahead(row) == "ahead" and "too few" not in row["sentence"]
    row = analysis.analyse(one, read(root, {"meal": 5, "static": 6}))["questions"]["updates"]["q"]
    assert row["seeds"] == [0, 1, 2, 3, 4] and row["sentence"].endswith("too few seeds for the test.")


def test_seeds_that_do_not_differ_are_no_evidence(write_runs):
    root = write_runs("meal", BASE[:8] + np.maximum(np.arange(8) - 1, 0))
    write_runs("static", BASE[:8])
    two = study_of(*(Question(f"q{i}", "meal", "static", "hypervolume") for i in range(2)))
    row = analysis.analyse(two, read(root, {"meal": 8, "static": 8}))["questions"]["updates"]["q0"]
    assert row["smallest_p"] == row["adjusted"] == pytest.approx(2 * 2 / 2**6)
    assert row["sentence"].endswith("6 seeds are too few for 2 questions at once.")


def test_a_question_without_runs_is_left_out(write_runs):
    root = write_runs("meal", [0.5, 0.6])
    study = study_of(Question("static", "meal", "static", "hypervolume"))
    content = analysis.analyse(study, read(root, {"meal": 2}))
    assert content["questions"] == {"updates": {}, "tokens": {}} and list(content["variants"]) == ["meal"]


def test_a_run_that_only_falls_counts_and_seeds_without_a_value_are_said(write_runs):
    rise, fall, flat = np.linspace(0, 1, 20), np.linspace(1, -5, 20), np.zeros(20)
    root = write_runs("meal", BASE, utility=rise)
    write_runs("static", BASE, utility=fall)
    for seed in (6, 7):
        shutil.rmtree(root / "static" / str(seed))
        write_run(root / "static" / str(seed), [0.0, 0.1], (0, 100), utility=flat)
    content = analysis.analyse(
        study_of(Question("lost", "meal", "static", "lost")), read(root, {"meal": 8, "static": 8})
    )
    row = content["questions"]["updates"]["lost"]
    assert row["mean"] == -1 and row["seeds"] == list(range(6)) and row["without_value"] == [6, 7]
    assert row["sentence"].endswith("Left out: 2 seeds in which a run has no value.")
    assert content["variants"]["static"]["steadiness"]["collapse_rate"] == pytest.approx(6 / 8)
