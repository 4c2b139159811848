"""What a run wrote and cannot be read any more."""

import json

import pytest

from meal_jax import answers_figure, json_files
from meal_jax.pareto import equal, one_point
from meal_jax.report import content
from meal_jax.study import measures, write

DAMAGED = {
    "cut": b'{"step": 3, "lo',
    "empty": b"",
    "zeros": b"\0" * 20,
    "no text": b'{"step": "\xff"}',
    "a list": b"[1]",
}
SPENT = {"budget": {"updates": 6}}
READERS = {
    "a report": ("pareto.json", lambda folder: content.gather([content.Entry("Meal", [folder])])),
    "a study's run": ("pareto.json", measures.read),
    "a figure of answers": (
        "pareto.json",
        lambda folder: answers_figure.draw(answers_figure.argparse.Namespace(run=folder, sample=0, out="")),
    ),
    "an evaluation": (
        "evals/000003.json",
        lambda folder: one_point.read_evaluations(folder, {"history": [{"step": 3}]}),
    ),
    "an evaluation at equal updates": (
        "evals/000003.json",
        lambda folder: equal.cut({folder: SPENT | {"history": [SPENT | {"step": 3}]}}, "updates"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_object_is_named(damage, tmp_path):
    path = tmp_path / "pareto.json"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError, match=r"pareto\.json is damaged \(.+\): bring it back from a copy"):
        json_files.read_object(path)


def test_rows_are_by_step_joined_and_without_damaged_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert json_files.read_rows(path) == {}
    lines = [{"step": 1, "utility": 2.0}, {"step": 0, "utility": 1.0}, {"step": 1, "eval/loss": 0.5}, [1], {"x": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "util')
    rows = {0: {"step": 0, "utility": 1.0}, 1: {"step": 1, "utility": 2.0, "eval/loss": 0.5}}
    assert json_files.read_rows(path) == rows and list(json_files.read_rows(path)) == [0, 1]
    path.write_bytes(path.read_bytes() + b"\n\xff\xfe\x00")
    assert json_files.read_rows(path) == rows


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_run_names_the_file(reader, tmp_path):
    name, read = READERS[reader]
    (tmp_path / "evals").mkdir()
    (tmp_path / name).write_bytes(DAMAGED["cut"])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read(tmp_path)


def test_a_damaged_record_of_a_study_has_no_failures(tmp_path):
    (tmp_path / "study.json").write_bytes(DAMAGED["cut"])
    assert write.read_failures(tmp_path) == write.read_failures(tmp_path / "none") == {}
    (tmp_path / "study.json").write_text('{"failed": {"a/0": "killed"}}')
    assert write.read_failures(tmp_path) == {"a/0": "killed"}
