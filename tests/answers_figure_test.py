"""The figure of answers: which preferences it shows, and that its file is drawn."""

import json

import pytest

from meal_jax import answers_figure
from meal_jax.pareto.answers_figure import choose


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


def test_a_run_that_is_not_finished_is_said(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no pareto\.json: its run is not finished"):
        answers_figure.main([f"--run={tmp_path}", f"--out={tmp_path / 'a.png'}"])
