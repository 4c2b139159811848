"""The comparison: what is run and what is not, the table's figures, sweeps. Training is replaced by canned results."""

import json

import numpy as np
import pytest

from configs import toy
from meal_jax import compare, methods, train


@pytest.fixture
def canned(monkeypatch):
    """Replaces training by results that depend on method and seed; gives the list of what was asked for."""
    asked = []

    def fake(config, method, task, folder):
        asked.append((config.method, config.seed, config.meal.tau))
        volume = 0.5 + 0.01 * config.seed + 0.1 * (config.method == "meal")
        preferences = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
        result = {
            "preferences": preferences.tolist(), "points": (volume * preferences).tolist(), "hypervolume": volume,
            "hypervolume_interval": [volume - 0.05, volume + 0.05], "share_of_true_hypervolume": volume,
            "mean_inner_product": 0.4, "sparsity": 0.1, "spacing": 0.0, "non_dominated": 1.0, "truncated": 0.25,
            "repetitive": 0.0, "monotonicity": [1.0, 0.5], "seconds_training": 10.0 + config.seed,
            "budget": {"rollout_tokens": 1000, "reward_calls": 50, "gradient_tokens": 2000, "updates": 8, "models": 1,
                       "forwards_per_token": 1},
            "history": [{"step": 0, "hypervolume": 0.0}, {"step": 4, "hypervolume": volume}],
        }  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "pareto.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(train, "train_and_evaluate", fake)
    return asked


def test_every_method_meets_every_seed_once_and_what_is_done_is_not_run_again(canned, tmp_path):
    config = toy.get_config()
    out = compare.run(config, str(tmp_path), ["meal", "static"], 3)
    assert [(method, seed) for method, seed, _ in canned] == [(m, s) for s in range(3) for m in ("meal", "static")]
    meal = out["methods"]["meal"]
    assert meal["hypervolume"] == pytest.approx(0.61) and meal["by_seed"]["hypervolume"] == pytest.approx(
        [0.6, 0.61, 0.62]
    )
    low, high = meal["hypervolume_interval"]
    assert low == pytest.approx(0.6) and high == pytest.approx(0.62) and meal["seconds_training"] == 11.0
    table = (tmp_path / "compare.md").read_text().splitlines()
    assert (
        len(table) == 4 and table[2].startswith("| Meal | 0.61 | 0.6 … 0.62 | 0.610 |") and "| 1.00, 0.50 |" in table[2]
    )
    assert all(line.count("|") == table[0].count("|") for line in table)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("fronts.png", "curves.png"))
    canned.clear()
    compare.run(config, str(tmp_path), ["meal", "static"], 4)
    assert [(method, seed) for method, seed, _ in canned] == [("meal", 3), ("static", 3)]


def test_a_sweep_runs_one_field_over_its_values(canned, tmp_path):
    out = compare.run(toy.get_config(), str(tmp_path), ["meal"], 1, sweep="meal.tau:0.05,0.5")
    assert [tau for _, _, tau in canned] == [0.05, 0.5]
    assert list(out["methods"]) == ["meal meal.tau=0.05", "meal meal.tau=0.5"]
    assert "Meal, tau 0.05" in (tmp_path / "compare.md").read_text()


def test_all_means_all_and_what_cannot_be_is_named():
    assert list(compare.variants(toy.get_config(), ["all"], None)) == list(methods.METHODS)
    with pytest.raises(ValueError, match="'best' is not one of meal, static"):
        compare.variants(toy.get_config(), ["best"], None)
    with pytest.raises(ValueError, match="meal.tua cannot be set to '1'"):
        compare.variants(toy.get_config(), ["meal"], "meal.tua:1")
    with pytest.raises(ValueError, match="cannot be set to 'warm'"):
        compare.variants(toy.get_config(), ["meal"], "meal.tau:warm")
    with pytest.raises(ValueError, match="names no values"):
        compare.variants(toy.get_config(), ["meal"], "meal.tau:")
