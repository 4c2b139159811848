import itertools

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from meal_jax.pareto import figures
from meal_jax.pareto.front import grid


def make_front(label, radius, objectives=2, spread=None, style=""):
    w = grid(objectives, 10 if objectives == 2 else 4)
    points = radius * w / np.linalg.norm(w, axis=1, keepdims=True)
    low, high = (None, None) if spread is None else (points - spread, points + spread)
    return figures.Front(label, w, points, low, high, style)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the Figure objects that are saved, so that a test can look at what is where."""
    remaining, save = [], figures.Figure.savefig

    def keep(figure, path, **kwargs):
        remaining.append(figure)
        save(figure, path, **kwargs)

    monkeypatch.setattr(figures.Figure, "savefig", keep)
    return remaining


def boxes(figure):
    FigureCanvasAgg(figure).draw()
    labels = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    return labels, [axes.get_window_extent() for axes in figure.axes], figure.legends[0].get_window_extent()


def overlap(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def test_two_objectives(tmp_path, drawn):
    arc = np.linspace(0, np.pi / 2, 50)
    truth = np.stack([np.sin(arc), np.cos(arc)], axis=1)
    fronts = [
        make_front("before", 0.2, style="before"),
        make_front("Meal", 0.9, spread=0.02),
        make_front("static", 0.7),
    ]
    path = tmp_path / "pareto.png"
    figures.draw_fronts(path, fronts, ["harmless", "helpful"], truth, "A title", reference=[0.1, 0.1])

    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 800 and np.std(pixels) > 0.05  # large enough to print, and not blank
    (figure,) = drawn
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("harmless reward", "helpful reward")
    display = [text.get_text() for text in figure.legends[0].get_texts()]
    assert display == ["true front", "before", "Meal", "static", "hypervolume reference"]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    everything = np.concatenate([truth, *(front.points for front in fronts)])
    assert left < everything[:, 0].min() and everything[:, 0].max() < right
    assert bottom < everything[:, 1].min() and everything[:, 1].max() < top
    written = [text.get_text() for text in axes.texts]
    for weight in ("0.0", "0.5", "1.0"):
        assert written.count(weight) == 2  # Meal's and static's, not those from before training


def test_lines_follow_the_preferences_not_the_rewards(tmp_path, drawn):
    w = grid(2)[::-1]  # descending, as a file might hold them
    points = np.stack([np.sin(9 * w[:, 0]), w[:, 1]], axis=1)
    figures.draw_fronts(tmp_path / "f.png", [figures.Front("zigzag", w, points)], ["a", "b"])
    lines = [line.get_xydata() for line in drawn[0].axes[0].lines if line.get_marker() == "None"]
    np.testing.assert_array_equal(lines[0], points[::-1])


@pytest.mark.parametrize(("methods", "noise"), [(1, 0.0), (3, 0.1), (9, 0.0)])
def test_labels_cover_nothing_and_the_legend_no_data(tmp_path, drawn, methods, noise):
    rng = np.random.default_rng(methods)
    fronts = []
    for n in range(methods):
        front = make_front(f"a method with a long name {n}", 1 - 0.07 * n)
        fronts.append(figures.Front(front.label, front.preferences, front.points + noise * rng.normal(size=(11, 2))))
    figures.draw_fronts(tmp_path / "f.png", fronts, ["a", "b"])
    labels, panels, legend = boxes(drawn[0])
    assert len(labels) >= 2
    assert not any(overlap(a, b) for a, b in itertools.combinations(labels, 2))
    assert all(panels[0].x0 < box.x0 and box.x1 < panels[0].x1 for box in labels)
    markers = drawn[0].axes[0].transData.transform(np.concatenate([front.points for front in fronts]))
    assert not any(box.contains(x, y) for box in labels for x, y in markers)
    assert not overlap(legend, panels[0])
    assert 0 <= legend.x0 and legend.x1 <= drawn[0].bbox.width and 0 <= legend.y0


def test_three_objectives_give_a_panel_for_each_pair(tmp_path, drawn):
    fronts = [make_front("Meal", 0.9, 3), make_front("static", 0.7, 3)]
    figures.draw_fronts(tmp_path / "f.pdf", fronts, ["x", "y reward", "z"], truth=fronts[0].points * 1.1)
    assert (tmp_path / "f.pdf").read_bytes()[:4] == b"%PDF"
    named = [(axes.get_xlabel(), axes.get_ylabel()) for axes in drawn[0].axes]
    assert named == [("x reward", "y reward"), ("x reward", "z reward"), ("y reward", "z reward")]
    display = {text.get_text() for axes in drawn[0].axes for text in axes.texts}
    assert display == {"1, 0, 0", "0, 1, 0", "0, 0, 1"}
    _, panels, legend = boxes(drawn[0])
    assert not any(overlap(legend, panel) for panel in panels)


def test_a_sweep_has_a_panel_a_measure_and_a_line_a_method(tmp_path, drawn):
    result = [(1.0, 0.9, 1.2), (3.0, 2.0, 3.5)]
    panels = {
        "hypervolume": {"Meal": result, "static": result[::-1]},
        "inner product": {"Meal": result, "static": result},
    }
    figures.draw_sweep(tmp_path / "s.png", ["0.1", "1.0"], panels, "config.meal.tau")
    left, right = drawn[0].axes
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == (
        "config.meal.tau",
        "hypervolume",
        "inner product",
    )
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0.1", "1.0"]
    line, _, (bars,) = left.containers[0]
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 3.0])
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[0.9, 1.2], [2.0, 3.5]])
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["Meal", "static"]


def test_methods_differ_in_colour_and_marker():
    looks = [figures._look(n) for n in range(12)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 12
    assert len({look["marker"] for look in looks[:9]}) == 9  # so the first nine are told apart in grey


def test_far_reference_does_not_stretch_the_axes(tmp_path, drawn):
    for reference in (None, [-50.0, -50.0]):
        figures.draw_fronts(tmp_path / "f.png", [make_front("Meal", 0.9)], ["a", "b"], reference=reference)
    assert drawn[0].axes[0].get_xlim() == drawn[1].axes[0].get_xlim()


QUESTION = (
    "friendly and welcoming tone reward (judge: Is this response friendly, and does it avoid all kinds of sarcasm?)"
)
MODELS = (
    QUESTION,
    "harmless reward (Ray2333/gpt2-large-harmless-reward_model)",
    f"short reward ({'number_of_words_' * 9})",
)


@pytest.mark.parametrize("objectives", [MODELS[:2], MODELS[1:], MODELS])
def test_long_descriptions_and_titles_stay_at_their_axes(tmp_path, drawn, objectives):
    fronts = [make_front("Meal", 0.9, len(objectives), 0.02), make_front("static", 0.7, len(objectives))]
    title = "own, mean of 5 seeds, at equal optimizer steps" * 4
    figures.draw_fronts(tmp_path / "f.png", fronts, objectives, title=title, reference=[0.0] * len(objectives))
    (figure,) = drawn
    _, panels, legend = boxes(figure)
    for axes, panel in zip(figure.axes, panels, strict=True):
        x, y = (label.get_window_extent() for label in (axes.xaxis.label, axes.yaxis.label))
        assert panel.x0 <= x.x0 + 5 and x.x1 <= panel.x1 + 5 and x.y1 < panel.y0  # pixels, 100 per inch
        assert panel.y0 <= y.y0 + 5 and y.y1 <= panel.y1 + 5 and y.x1 < panel.x0
        assert x.y0 > legend.y1 and y.x0 >= 0 and not any(overlap(y, other) for other in panels)
        assert panel.height > 200 and panel.width > 200  # what is left for the points
    top = figure._suptitle.get_window_extent()
    assert 0 <= top.x0 and top.x1 <= figure.bbox.width and top.y1 <= figure.bbox.height
    assert all(top.y0 > panel.y1 for panel in panels)
    assert 0 <= legend.x0 and legend.x1 <= figure.bbox.width
    assert figure.legends[0]._ncols == 3  # not as few as the note's width would leave room for
    note = figure.legends[0].get_title().get_text()
    assert not any(origin in note for origin in ("judge", "Ray2333", "number_of_words"))


def test_what_needs_more_lines_than_there_are_ends_in_an_ellipsis(tmp_path, drawn):
    figures.draw_fronts(tmp_path / "f.png", [make_front("Meal", 0.9)], ["a", f"b reward (judge: {'Is it so? ' * 60})"])
    lines = drawn[0].axes[0].get_ylabel().splitlines()
    assert len(lines) == 3 and lines[0].startswith("b reward (judge: Is it so?") and lines[2].endswith(" …")


def test_a_single_evaluation_is_a_point(tmp_path, drawn):
    figures.draw_curves(tmp_path / "c.png", {"Meal": ([0], [1.0]), "static": ([0], [0.5])}, "updates", "hypervolume")
    assert [line.get_markevery() for line in drawn[0].axes[0].lines] == [1, 1]
    assert np.mean(matplotlib.image.imread(tmp_path / "c.png")[:600, 200:, 0] < 0.5) > 1e-4  # a mark, above the legend


def test_a_dollar_sign_in_a_question_is_a_dollar_sign(tmp_path, drawn):
    names = ("price (judge: Is it worth $5 or 6_$?)", "b $x$ reward")
    figures.draw_fronts(tmp_path / "a.png", [make_front("at $5_$6", 1.0)], names, title="for $1_$2")
    [axes] = drawn[0].axes
    assert axes.get_xlabel().startswith("price (judge: Is it worth $5") and not axes.yaxis.label.get_parse_math()
    figures.draw_curves(tmp_path / "b.png", {"$1_$2": ([0, 1], [0, 1])}, "spent, $_$", "gain")


def test_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="2 or 3 objectives, not 4"):
        figures.draw_fronts(tmp_path / "f.png", [], ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"of front 'Meal' have shape \(15, 3\)"):
        figures.draw_fronts(tmp_path / "f.png", [make_front("Meal", 0.9, 3)], ["a", "b"])


def test_curves(tmp_path, drawn):
    x = np.arange(100)
    figures.draw_curves(tmp_path / "c.png", {"Meal": (x, x**2), "static": (x[:3], x[:3])}, "updates", "loss", "A title")
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", "loss")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["Meal", "static"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), x**2)
    assert (tmp_path / "c.png").stat().st_size > 10_000
