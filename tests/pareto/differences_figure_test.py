"""The figure of paired differences: every estimate at its row with its interval, gaps left empty, a file of the suffix."""

import numpy as np
from matplotlib.figure import Figure

from meal_jax.pareto import differences_figure


def test_estimates_stand_at_their_rows_with_their_intervals(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    groups = {"updates": [(0.5, 0.1, 0.9), None, (-1.0, -2.0, 0.0)], "tokens": [None, None, (-0.5, -1.0, 0.5)]}
    path = tmp_path / "differences.svg"
    differences_figure.draw_differences(path, ["first", "second", "third"], groups, "effect", "title")

    assert path.read_text().startswith("<?xml")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second", "third"]
    updates, tokens = axes.containers
    np.testing.assert_allclose(updates.lines[0].get_xydata(), [[0.5, -0.11], [-1.0, 1.89]])
    np.testing.assert_allclose(tokens.lines[0].get_xydata(), [[-0.5, 2.11]])
    ends = [segment[:, 0].tolist() for segment in updates.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.1, 0.9], [-2.0, 0.0]])
    low, high = axes.get_ylim()
    assert low > high  # from the top down


def test_no_estimate_at_all_is_an_empty_figure(tmp_path):
    differences_figure.draw_differences(tmp_path / "a.png", ["first"], {"updates": [None]}, "effect")
    assert (tmp_path / "a.png").stat().st_size > 1000
