"""Spreads, ratios and ceilings."""

import pytest

from meal_jax.bench import timing


def test_spread_and_ratio_of_samples_made_by_hand():
    s = timing.spread([3.0, 1.0, 2.0, 5.0])
    assert (s["median"], s["min"], s["q1"], s["q3"], s["n"]) == (2.5, 1.0, 1.75, 3.5, 4)
    r = timing.ratio([4.0, 9.0, 8.0], [2.0, 3.0, 8.0])
    assert r["of_medians"] == pytest.approx(8.0 / 3.0)
    assert r["of_pairs"]["samples"] == [2.0, 3.0, 1.0] and r["of_pairs"]["median"] == 2.0


def test_ceilings_are_measured():
    c = timing.ceilings("float32", repeats=1)
    assert 1e8 < c.flops < 1e15 and 1e7 < c.bandwidth < 1e13


def test_peak_memory_is_known():
    held, of = timing.peak_memory()
    assert held > 1e7 and of in ("device", "process")
