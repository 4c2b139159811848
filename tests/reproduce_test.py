"""The paper's figures by name: the page is the table's, commands are of things that exist, hours are the cost model's."""

from pathlib import Path

import pytest

from meal_jax import cost, reproduce, roofline
from meal_jax.aot import figures as scaling
from meal_jax.chips import CHIPS

ROOT = Path(__file__).parents[1]


def test_the_page_is_the_tables():
    assert (ROOT / "docs" / "reproduce.md").read_text() == reproduce.document(), (
        "python -m meal_jax.reproduce --write=docs/reproduce.md"
    )


def test_every_figure_has_every_scale_and_files_that_exist():
    figures = reproduce.figures()
    assert [figure.name for figure in figures] == ["2", "3a", "3b", "3c", "5", "6"]
    for figure in figures:
        assert tuple(figure.recipes) == reproduce.SCALES
        for recipe in filter(lambda r: r.config, figure.recipes.values()):
            assert (ROOT / recipe.config.partition(":")[0]).exists() and f"--config={recipe.config}" in recipe.arguments


def test_a_letter_names_the_whole_figure_where_panels_are_not_known():
    assert reproduce.choose("5a", "toy")[0].name == "5" and reproduce.choose("3b", "full")[0].name == "3b"
    assert reproduce.choose("6", "toy")[1].arguments[-1] == "--only=tau"
    with pytest.raises(ValueError, match="--figure=4 is none of 2, 3a"):
        reproduce.choose("4", "toy")
    with pytest.raises(ValueError, match="--figure=3d is none of"):
        reproduce.choose("3d", "toy")
    with pytest.raises(
        ValueError, match="3c cannot be made at --scale=small: the package has no small reward for humor"
    ):
        reproduce.choose("3c", "small")


def test_full_hours_are_the_cost_models_steps_and_a_little_for_evaluations():
    """Against the run that docs/scaling.md is about, which has Reddit's sizes: 2,000 steps of it on one chip."""
    parts = cost.step(scaling.BASE).values()
    steps = 2000 * sum(roofline.bound(part, CHIPS["h100"]).seconds for part in parts) / 3600
    assert steps < reproduce.model_hours("configs/reddit.py:summary,faithful") < 1.3 * steps


def test_a_figure_is_run_with_the_flags_given_for_it(monkeypatch, capsys):
    commands = []

    class Done:
        returncode = 3

    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: commands.append(command) or Done)
    with pytest.raises(SystemExit) as status:
        reproduce.main(["--figure=2", "--", "--config.steps=4", "--config.objectives=('a', 'b')"])
    assert status.value.code == 3
    assert commands[0][1:3] == ["-m", "meal_jax.compare"] and commands[0][-2:] == [
        "--config.steps=4", "--config.objectives=('a', 'b')",
    ]  # fmt: skip
    reproduce.main(["--figure=5", "--dry_run"])
    assert len(commands) == 1 and "--only=lam --workdir=runs/study_toy" in capsys.readouterr().out
    reproduce.main(["--list"])
    assert "configs/assistant.py:helpful,humor" in capsys.readouterr().out
