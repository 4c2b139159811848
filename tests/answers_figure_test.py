"""The figure of answers: which preferences it shows, and that its file is drawn."""

import itertools
import json

import pytest
from matplotlib.figure import Figure

from meal_jax import answers_figure
from meal_jax.pareto.answers_figure import LEFT, RIGHT, WIDTH, choose, draw_answers


def answer(*weights):
    text = 'Tim was happy. "Hello," he said, and then he went on and on until the line was full and a new one began.'
    return {"preference": list(weights), "response": text, "rewards": {"dialogue": 0.5, "cheerful": 0.25, "short": 0.1}}


def test_it_shows_the_preferences_nearest_to_the_quarters():
    rows = [answer(i / 10, 1 - i / 10) for i in range(11)]
    assert [row["preference"][0] for row in choose(rows)] == [0.0, 0.2, 0.5, 0.7, 1.0]
    three = [answer(*w) for w in ((0, 0, 1), (0, 0.5, 0.5), (0, 1, 0), (0.5, 0.25, 0.25), (1, 0, 0))]
    assert [row["preference"][0] for row in choose(three)] == [0, 0.5, 1]


@pytest.mark.parametrize("objectives", [("dialogue", "cheerful"), ("dialogue", "cheerful", "short")])
def test_a_figure_of_a_run(tmp_path, objectives):
    k = len(objectives)
    rows = [answer(*(1.0 if i == j else 0.0 for j in range(k))) for i in range(k)]
    sample = {"prompt": "Once upon a time, there was a boy named Tim.", "answers": rows}
    (tmp_path / "pareto.json").write_text(
        json.dumps({"task": "stories", "objectives": objectives, "samples": [sample]})
    )
    answers_figure.main([f"--run={tmp_path}", f"--out={tmp_path / 'a.png'}"])
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="samples 0 to 0"):
        answers_figure.main([f"--run={tmp_path}", f"--out={tmp_path / 'a.png'}", "--sample=1"])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved; their files are not written."""
    out = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: out.append(self))
    return out


@pytest.mark.parametrize(
    ("rewards", "response"),
    [
        ({"helpfulness score": 1.234, "harmlessness": -12.5, "humor": 123456.789}, "Once there was a dog. " * 8),
        ({"speech": 1.2, "a long objective name": -1.2}, "averyveryverylongunbrokenword" * 6),
        ({"a name that is far too long for any of its columns": 1.0, "b": -2.3e9, "c" * 60: 0.0, "d": 1.0}, "x " * 90),
    ],
)
def test_names_numbers_and_answers_keep_to_their_columns(drawn, rewards, response):
    rows = [{"preference": [w, 1 - w], "response": response, "rewards": rewards} for w in (0.0, 1.0)]
    draw_answers("a.png", "Tell me a story. " * 9, rows, list(rewards))
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts if text.get_text()]
    assert len(boxes) > 10 and all(0 <= box.x0 and box.x1 <= drawn[0].bbox.width for box in boxes)
    for a, b in itertools.combinations(boxes, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)
    words = "".join(text.get_text() for text in drawn[0].axes[0].texts)
    assert words.count(response.replace(" ", "")) == 2  # nothing of the answers is lost


def test_short_names_leave_the_columns_as_they_are(drawn):
    draw_answers("a.png", "Once", [answer(0.0, 1.0)], ["dialogue", "cheerful"])
    texts = {text.get_text(): text.get_position()[0] for text in drawn[0].axes[0].texts}
    assert texts["Once"] == LEFT
    assert (texts["0.50"], texts["0.25"]) == (pytest.approx(WIDTH - RIGHT / 2 - 0.1), pytest.approx(WIDTH - 0.1))


def test_a_run_that_is_not_finished_is_said(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no pareto\.json: its run is not finished"):
        answers_figure.main([f"--run={tmp_path}", f"--out={tmp_path / 'a.png'}"])
