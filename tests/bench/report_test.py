"""Figures and numbers as they are printed."""

from meal_jax.bench import report, timing


def test_quantities_have_prefixes():
    assert [report.quantity(x) for x in (None, 12.0, 1.23e9, 4.5e12)] == ["", "12 ", "1.23 G", "4.5 T"]


def test_figures_are_drawn(tmp_path):
    stacks = {"ours": {"rollout": 1.0, "score": 0.01, "update": 2.0}, "theirs": {"rollout": 2.0, "update": 3.0}}
    report.draw_step(tmp_path / "step.png", stacks, "title")
    curves = {"rollout": [timing.spread([1.0, 1.1]), timing.spread([2.0, 2.5])]}
    report.draw_growth(tmp_path / "growth.png", "B", (2, 4), curves, "title")
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("step.png", "growth.png"))
