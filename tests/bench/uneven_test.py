"""Rollouts of uneven length: the file of lengths, and the measurement in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest

from meal_jax.bench import uneven

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "hh_rlhf_lengths.txt"


def test_the_shipped_lengths_are_sorted_counts():
    counts = uneven.read_lengths(SHIPPED)
    assert len(counts) > 400 and (np.diff(counts) >= 0).all() and counts[0] >= 1
    assert 30 < np.median(counts) < 40 and 45 < counts.mean() < 60


@pytest.mark.parametrize(
    "text, message", [("3\n0\n", "line 2: '0'"), ("# a\n1.5\n", "line 2: '1.5'"), ("#\n", "no token")]
)
def test_what_is_no_list_of_counts_is_refused(tmp_path, text, message):
    path = tmp_path / "lengths.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        uneven.read_lengths(path)


def test_both_sides_sample_the_drawn_lengths(small, tmp_path):
    small.meal.candidates = 4
    path = tmp_path / "lengths.txt"
    path.write_text("# counts\n1\n2\n\n9\n")
    results = uneven.bench(small, tmp_path, lengths=str(path), repeats=2)
    assert set(results["seconds"]) == {"all rows", "compacted"} and set(results["ratios"]) == {"all rows"}
    assert results["longest"] == [3, 3] and all(16 <= total <= 48 for total in results["tokens"])
    assert results["live"] == sum(results["tokens"]) / (2 * 16 * 3)
    assert json.loads((tmp_path / "uneven.json").read_text())["bit_equal"]["tokens"]
