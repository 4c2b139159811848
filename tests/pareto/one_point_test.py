"""Hypervolumes moved to one reference point: by hand, and what is left out."""

import json

import numpy as np
import pytest

from meal_jax.pareto import one_point


def result(reference, volume=7.0):
    return {
        "points": [[1.0, 2.0]], "reference": reference, "hypervolume": volume, "hypervolume_interval": [6.0, 8.0],
        "true_hypervolume": 9.0, "share_of_true_hypervolume": 0.8, "mean_inner_product": 1.5,
        "history": [{"step": 0, "hypervolume": 1.0}, {"step": 5, "hypervolume": volume}],
    }  # fmt: skip


def write(folder, content):
    (folder / "evals").mkdir(parents=True)
    for step, points in ((0, [[0.0, 1.0]]), (5, content["points"])):
        (folder / "evals" / f"{step:06d}.json").write_text(json.dumps({"points": points}))


def test_the_lowest_point_is_by_objective_and_one_point_stays():
    assert one_point.lowest([result([0.0, -1.0]), result([-2.0, 0.0])]) == [-2.0, -1.0]
    assert one_point.lowest([result([0.0, -1.0])] * 2) is None
    assert one_point.lowest([]) is None and one_point.lowest([{"points": []}]) is None


def test_runs_are_measured_from_the_lowest_point_with_their_history(tmp_path):
    results = {tmp_path / "a": result([0.0, -1.0]), tmp_path / "b": result([-2.0, 0.0])}
    for folder, content in results.items():
        write(folder, content)
    moved, reference = one_point.of_folders(results)
    assert reference == [-2.0, -1.0]
    for content in moved.values():
        assert content["hypervolume"] == pytest.approx(3.0 * 3.0) and content["reference"] == reference
        np.testing.assert_allclose([h["hypervolume"] for h in content["history"]], [2.0 * 2.0, 9.0])
        assert content["mean_inner_product"] == 1.5 and not content.keys() & set(one_point.OWN)
    assert results[tmp_path / "a"]["hypervolume"] == 7.0  # what was given is left alone
    assert "from (-2, -1), the lowest" in one_point.sentence(reference)


def test_runs_of_one_point_are_left_as_they_are(tmp_path):
    results = {tmp_path / name: result([0.0, 0.0]) for name in "ab"}
    assert one_point.of_folders(results) == (results, None)
