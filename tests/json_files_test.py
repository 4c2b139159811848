"""What a run wrote and cannot be read any more: the file and the line are named, and what to do."""

import json

import pytest

from meal_jax import answers_figure, compare, evaluate, json_files
from meal_jax.pareto import one_point
from meal_jax.study import measures, write

DAMAGED = {
    "cut": b'{"step": 3, "lo',
    "empty": b"",
    "zeros": b"\0" * 20,
    "no text": b'{"step": "\xff"}',
    "a list": b"[1]",
}
READERS = {
    "a run's results": ("pareto.json", lambda folder: compare.read({"a": [folder]}, "steps")),
    "a study's run": ("pareto.json", measures.read),
    "a figure of answers": (
        "pareto.json",
        lambda folder: answers_figure.draw(answers_figure.argparse.Namespace(run=folder, sample=0, out="")),
    ),
    "an evaluation": (
        "evals/000003.json",
        lambda folder: one_point.read_evaluations(folder, {"history": [{"step": 3}]}),
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_object_is_named(damage, tmp_path):
    path = tmp_path / "pareto.json"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError, match=r"pareto\.json is damaged \(.+\): bring it back from a copy"):
        json_files.read_object(path)


@pytest.mark.parametrize("damage", [*DAMAGED, "no step"])
def test_a_damaged_line_is_named(damage, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + (DAMAGED | {"no step": b'{"loss": 1}'})[damage] + b'\n{"step": 4}\n')
    with pytest.raises(
        ValueError, match=r"metrics\.jsonl:2 is damaged \(.+\): delete that line and run the same command"
    ):
        json_files.read_rows(path)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_a_run_names_the_file(reader, tmp_path):
    name, read = READERS[reader]
    (tmp_path / "evals").mkdir()
    (tmp_path / name).write_bytes(DAMAGED["cut"])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read(tmp_path)


def test_lengths_of_responses_are_of_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert evaluate.response_lengths(path) == {}
    rows = [{"step": 0, "response/length": 2.0}, {"step": 1}, {"step": 0, "response/length": 3.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate.response_lengths(path) == {0: 3.0}
    with path.open("a") as file:
        file.write('{"step": 2, "resp')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:4 is damaged"):
        evaluate.response_lengths(path)


def test_a_damaged_record_of_a_study_has_no_failures(tmp_path):
    (tmp_path / "study.json").write_bytes(DAMAGED["cut"])
    assert write.read_failures(tmp_path) == write.read_failures(tmp_path / "none") == {}
    (tmp_path / "study.json").write_text('{"failed": {"a/0": "killed"}}')
    assert write.read_failures(tmp_path) == {"a/0": "killed"}
