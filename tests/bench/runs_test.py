"""Measurements in miniature: their rows, their files, and what is refused."""

import json

import numpy as np
import pytest

from meal_jax.bench import runs

TOKENS, SAMPLES = 4 * 2 * 3, 4 * 2


def test_phases_have_rows_and_the_loop_is_timed(small, tmp_path, capsys):
    results = runs.bench(small, tmp_path, phases=("rollout", "step"), repeats=3, loop=2)
    assert [(row["side"], row["phase"]) for row in results["rows"]] == [("static", "rollout"), ("static", "step")]
    for row in results["rows"]:
        assert row["seconds"]["n"] == 3 == len(row["seconds"]["samples"])
        assert row["tokens_per_s"] == pytest.approx(TOKENS / row["seconds"]["median"])
        assert row["samples_per_s"] == pytest.approx(SAMPLES / row["seconds"]["median"])
        assert row["compile_s"] > 0 and row["flops"] > 0 and row["mfu"] > 0
        assert row["roofline"] == pytest.approx(row["least_s"] / row["seconds"]["median"])
    rollout, step = results["rows"]
    assert step["flops"] > rollout["flops"]
    assert 0 <= results["loop"]["data_wait"] <= 1 and 0 <= results["loop"]["idle"] <= 1
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["rows"] == results["rows"] and written["config"]["batch_size"] == 4
    assert written["ceilings"]["flops"] > 0 and written["machine"]["versions"]["jax"]
    assert (tmp_path / "bench.png").stat().st_size > 5_000
    display = capsys.readouterr().out
    assert "rollout" in display and "measured here" in display and "training loop" in display


def test_a_sweep_has_a_row_for_every_value_and_phase(small, tmp_path):
    results = runs.sweep(small, tmp_path, over="length", values=(4, 2), phases=("rollout", "score", "step"), repeats=2)
    assert [(row["length"], row["phase"]) for row in results["rows"]] == [
        (2, "rollout"), (2, "score"), (4, "rollout"), (4, "score"),
    ]  # fmt: skip
    assert results["rows"][2]["flops"] > results["rows"][0]["flops"]
    assert (tmp_path / "sweep_length.png").stat().st_size > 5_000


def test_a_sweep_takes_more_objectives_than_an_evaluation_has_preferences_for(small, tmp_path):
    results = runs.sweep(small, tmp_path, over="objectives", values=(8,), phases=("score",), repeats=1)
    assert [row["objectives"] for row in results["rows"]] == [8]


def test_the_second_level_is_set_against_a_plain_step(small, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "LEVELS", {"none": runs.LEVELS["none"]})
    results = runs.bilevel(small, tmp_path, repeats=2)
    update = {row["side"]: row["seconds"]["samples"] for row in results["rows"]}
    assert set(update) == {"static", "none"}
    steps = results["ratios"]["step over a plain step"]
    common = results["common_s"]["samples"]
    expected = np.add(common, update["none"]) / np.add(common, update["static"])
    np.testing.assert_allclose(steps["none"]["of_pairs"]["samples"], expected, rtol=1e-6)
    assert steps["static"]["of_medians"] == 1.0
    flops = {row["side"]: row["flops"] for row in results["rows"]}
    assert flops["none"] > flops["static"]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"phases": ("rolout",)}, "phases are rollout, score, update, step"),
        ({"task": "toy"}, {"random": True}, "not for 'toy'"),
        ({"policy.source": "nobody/nothing"}, {"random": True}, "no shapes of that name are known"),
        ({"reward.sources": ("python:meal_jax.tasks.story_text:short", "heads")}, {}, "not measured here"),
        ({"task": "toy"}, {"vs": "hf"}, "'synthetic'"),
        ({"policy.lora_rank": 0}, {"vs": "hf"}, "set config.policy.lora_rank"),
        ({"method": "parm"}, {"vs": "hf"}, "not of parm"),
    ],
)
def test_what_cannot_be_measured_is_refused(small, tmp_path, monkeypatch, changes, arguments, message):
    if "vs" in arguments:
        monkeypatch.setattr(runs.peers, "NEEDED", ())
    small.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs.bench(small, tmp_path, **arguments)
