"""The figure of paired differences: every estimate at its row with its interval, gaps left empty, a file of the suffix."""

import itertools

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


def test_long_labels_leave_room_for_the_estimates(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (self.draw_without_rendering(), figures.append(self))
    )
    long = "Meal, standardised features − static targets, standardised features: share of the true hypervolume"
    for rows in (["short"] * 3, [long] * 3):
        estimates = {"updates": [(0.5, 0.1, 0.9)] * 3}
        differences_figure.draw_differences(tmp_path / "a.png", rows, estimates, "effect size d_z, 95 % intervals")
    axes = figures[1].axes[0]
    texts = axes.get_yticklabels()
    assert texts[0].get_text().replace("\n", " ") == long
    assert max(map(len, texts[0].get_text().splitlines())) <= differences_figure.LABEL
    assert axes.get_window_extent().width > 0.45 * figures[1].bbox.width
    assert axes.xaxis.label.get_window_extent().x1 <= figures[1].bbox.width
    for above, below in itertools.pairwise(text.get_window_extent() for text in texts):
        assert above.y0 > below.y1
    assert tuple(figures[0].get_size_inches()) == (7.2, 1.2 + 3 * 0.34)  # as before where no label is long


def test_no_estimate_at_all_is_an_empty_figure(tmp_path):
    differences_figure.draw_differences(tmp_path / "a.png", ["first"], {"updates": [None]}, "effect")
    assert (tmp_path / "a.png").stat().st_size > 1000
