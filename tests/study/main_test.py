"""The command: a study of two variants and two seeds, resumed, with a failed run; training is a script's, once real."""

import json
from pathlib import Path

import pytest

from meal_jax.report import write as report_page
from meal_jax.study import __main__ as command
from meal_jax.study import plan, runs
from meal_jax.study.plan import Curve, Question, Variant

FAKE = """
import sys, pathlib
sys.path.insert(0, {here!r})
from conftest import write_run
folder = pathlib.Path({folder!r})
with open(folder.parents[1] / "trained", "a") as file:
    file.write({name!r} + "\\n")
if {name!r} in (folder.parents[1] / "fails").read_text().split():
    sys.exit("error: a reward is not a number")
write_run(folder, [0.0, {volume}, 2 * {volume}], (0, 100, 200))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose runs are written by a script that takes a tenth of a second."""
    (tmp_path / "fails").write_text("")

    def arguments(study, variant, seed, folder):
        volume = 0.2 + 0.01 * seed + 0.05 * (variant.name == "meal")
        here = str(Path(__file__).parent)
        return ["-c", FAKE.format(here=here, folder=str(folder), name=f"{variant.name}/{seed}", volume=volume)]

    def finished(folder, config):
        return {} if (folder / "pareto.json").exists() else None

    monkeypatch.setattr(runs, "arguments", arguments)
    monkeypatch.setattr(runs, "finished", finished)
    monkeypatch.setattr(
        report_page, "write_and_say", lambda root: print(f"report: {root}")
    )  # of runs that wrote too little
    c = plan.default()
    c.base, c.seeds = "configs/toy.py", 2
    c.variants = (Variant("meal", "Meal"), Variant("static", "static targets", "static"), Variant("spare", "spare"))
    c.questions = (
        Question("static", "meal", "static", "hypervolume"),
        Question("spare", "meal", "spare", "hypervolume"),
    )
    c.curves = (Curve("lam", "meal.lam", (("0", "static"), ("0.1", "meal"))),)
    c.drawn = ("meal", "static")
    return c


def trained(root):
    return sorted((root / "trained").read_text().split())


def test_a_study_is_trained_reported_and_resumed(study, tmp_path, capsys):
    (tmp_path / "fails").write_text("static/1")
    assert command.run(study, tmp_path, ["static", "lam"], 2, False) == 1
    assert trained(tmp_path) == ["meal/0", "meal/1", "static/0", "static/1"]
    out = capsys.readouterr().out
    assert "4 runs, 0 of them finished; 2 at a time" in out
    assert "[4/4]" in out and "failed: static/1: error: a reward is not a number (" in out
    text, content = (tmp_path / "study.md").read_text(), json.loads((tmp_path / "study.json").read_text())
    assert "3 of 4 runs are finished (seeds 0 to 1). Failed: static/1 (error: a reward is not a number" in text
    assert content["finished"] == 3 and list(content["failed"]) == ["static/1"] and content["missing"] == []
    assert content["questions"]["updates"]["static"]["seeds"] == [0]

    (tmp_path / "fails").write_text("")
    assert command.run(study, tmp_path, ["static", "lam"], 1, False) == 0
    assert trained(tmp_path).count("static/1") == 2 and trained(tmp_path).count("meal/0") == 1
    text, content = (tmp_path / "study.md").read_text(), json.loads((tmp_path / "study.json").read_text())
    row = content["questions"]["updates"]["static"]
    assert row["mean"] == pytest.approx(0.1) and row["seeds"] == [0, 1] and row["effect"] is None
    assert "- Meal against static targets in hypervolume: +0.100 (+0.100 … +0.100), ahead in 2 of 2 seeds" in text
    assert "| static | Meal | static targets | hypervolume | 2 | 0.51, 0.41 |" in text and "**not told apart**" in text
    assert "No result could have been significant here" in text and "| Meal | 0.510 (0.500 … 0.520) |" in text
    for name in ("differences", "training", "fronts", "curve_lam"):
        assert f"({name}.png)" in text and (tmp_path / f"{name}.png").stat().st_size > 5000


def test_one_seed_from_different_reference_points_has_numbers_without_intervals(study, tmp_path, write_runs):
    write_runs("meal", [0.8])
    write_runs("static", [0.8], reference=(-1.0, -1.0))
    study.seeds = 1
    assert command.run(study, tmp_path, ["static", "lam"], 1, True) == 0
    text, content = (tmp_path / "study.md").read_text(), json.loads((tmp_path / "study.json").read_text())
    assert content["reference"] == [-1.0, -1.0] and content["questions"]["updates"]["static"]["mean"] == 0
    volume = content["variants"]["meal"]["hypervolume"]
    assert volume == content["variants"]["static"]["hypervolume"]
    assert f"| Meal | {volume:.3f} | – | 0.400 (" in text and (tmp_path / "curve_lam.png").exists()


def test_report_trains_nothing_and_says_what_is_missing(study, tmp_path, capsys):
    (tmp_path / "fails").write_text("static/0")
    study.seeds = 1
    command.run(study, tmp_path, ["static"], 2, False)
    before = trained(tmp_path)
    study.seeds = 2
    assert command.run(study, tmp_path, [], 2, True) == 1
    assert trained(tmp_path) == before
    text, content = (tmp_path / "study.md").read_text(), json.loads((tmp_path / "study.json").read_text())
    assert content["missing"] == ["spare/0", "meal/1", "static/1", "spare/1"] and "static/0" in content["failed"]
    assert (
        "Not answered at equal policy updates, for want of two runs of one seed that were evaluated there: static, spare."
        in text
        and "Not run: 4." in text
    )
    assert "failed: static/0" in capsys.readouterr().out


def test_a_wrong_name_is_refused_before_anything_is_written(study, tmp_path):
    with pytest.raises(ValueError, match="--only names net"):
        command.run(study, tmp_path / "new", ["net"], 1, False)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_two_real_runs_are_ordinary_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    c = plan.default()
    c.base, c.seeds = "configs/toy.py", 1
    c.changes = (
        "steps=6", "batch_size=16", "meal.candidates=2", "policy.width=16", "policy.hidden=16", "policy.layers=1",
        "sampling.max_new=4", "eval.prompts=16", "eval.divisions=2", "eval.every=3", "eval.bootstrap=10",
        "tensorboard=False",
    )  # fmt: skip
    c.variants = (Variant("meal", "Meal"), Variant("static", "static targets", "static"))
    c.questions = (Question("static", "meal", "static", "hypervolume"),)
    assert command.run(c, tmp_path, [], 2, False) == 0, (tmp_path / "logs" / "meal_0.log").read_text()
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["finished"] == 2 and content["questions"]["tokens"]["static"]["seeds"] == [0]
    assert all(run.finished for run in runs.table(c, tmp_path))
    stamp = (tmp_path / "meal" / "0" / "pareto.json").stat().st_mtime_ns
    assert command.run(c, tmp_path, [], 2, False) == 0
    assert (tmp_path / "meal" / "0" / "pareto.json").stat().st_mtime_ns == stamp
