"""Series of metrics that results need: of the checkpoint; of an older run from a metrics.jsonl that must be whole."""

import json

import pytest

from meal_jax.runtime import series

NAMES = ("response/length",)


@pytest.fixture
def older(tmp_path):
    """Function (the lines of a metrics.jsonl) → a workdir whose checkpoints hold no series."""

    def write(lines):
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
        return tmp_path

    return write


def lines(steps):
    return [json.dumps({"step": step, "response/length": step + 0.5}) for step in steps]


def test_they_begin_empty_and_a_step_without_the_metric_adds_nothing(tmp_path):
    kept = series.restore({}, tmp_path, 0, NAMES)
    for step, row in enumerate(({"response/length": 3.5, "loss": 1.0}, {"loss": 2.0}, {"response/length": 2.0})):
        series.add(kept, step, row)
    assert kept == {"response/length": [[0, 3.5], [2, 2.0]]}


def test_those_of_the_checkpoint_are_taken_whatever_the_file_says(older):
    kept = {"response/length": [[0, 3.5], [1, 2.0]]}
    assert series.restore({"config": {}, series.META: kept}, older(lines([0])), 2, NAMES) == kept


def test_an_older_run_has_them_from_its_file(older):
    restored = series.restore({}, older([*lines(range(3)), '{"step": 3, "eval/loss": 1}', *lines([4]), "{"]), 4, NAMES)
    assert restored == {"response/length": [[0, 0.5], [1, 1.5], [2, 2.5]]}


@pytest.mark.parametrize(
    ("steps", "says"),
    [([0, 1, 3], "the rows of 1 of 4 steps, the first of which is step 2"), ([], "the rows of 4 of 4 steps")],
)
def test_a_file_that_is_needed_and_was_cut_is_refused_by_name(older, steps, says):
    workdir = older(lines(steps))
    if not steps:
        (workdir / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"metrics\.jsonl lacks {says}"):
        series.restore({}, workdir, 4, NAMES)
