"""Steadiness against closed forms: lines, steps, noise of known variance."""

import numpy as np
import pytest

from meal_jax.pareto import steadiness


def rows(utility, gradient=None):
    gradient = np.zeros(len(utility)) if gradient is None else gradient
    return [
        {"step": step, "utility": float(u), "grad_norm/policy": float(g)}
        for step, (u, g) in enumerate(zip(utility, gradient, strict=True))
    ]


def test_a_line_has_the_variance_of_its_last_four_fifths_and_almost_no_noise():
    slope, steps = 0.01, 100
    measured = steadiness.measure(rows(slope * np.arange(steps)))
    count = 80  # var of 20 … 99 with n - 1 below: n (n + 1) / 12
    assert measured.utility_variance == pytest.approx(slope**2 * count * (count + 1) / 12)
    assert measured.utility_noise == pytest.approx(slope**2 / 2)
    # Means of 5: from 2 to 97 (in steps); 90 % of the way is 87.5, first passed by the mean of 86 … 90.
    assert measured.steps_to_90 == 90
    assert measured.lost == 0 and not measured.collapsed and measured.grad_norm_variance == 0


def test_an_alternating_series_has_the_noise_of_its_steps():
    values = np.where(np.arange(50) % 2, 1.0, -1.0)
    measured = steadiness.measure(rows(np.zeros(50), values))
    assert measured.grad_norm_variance == pytest.approx(40 / 39)
    assert steadiness.noise(values) == pytest.approx(2.0)
    assert np.isnan(measured.steps_to_90) and np.isnan(measured.lost) and not measured.collapsed


def test_independent_noise_has_its_variance_as_both_measures():
    values = np.random.default_rng(0).normal(3.0, 0.5, 50_000)
    assert steadiness.variance(values) == pytest.approx(0.25, rel=0.03)
    assert steadiness.noise(values) == pytest.approx(0.25, rel=0.03)


def test_what_happens_in_the_first_fifth_does_not_count_in_variances():
    values = np.r_[1000.0 * np.arange(10), np.full(40, 7.0)]
    assert steadiness.variance(values) == 0 and steadiness.noise(values) == 0


@pytest.mark.parametrize(("end", "lost"), [(1.0, 0.0), (0.7, 0.3), (0.4, 0.6), (0.0, 1.0), (-0.5, 1.5)])
def test_a_fall_after_a_rise_is_its_share_of_the_rise(end, lost):
    values = np.r_[np.zeros(20), np.ones(40), np.full(40, end)]
    measured = steadiness.measure(rows(values))
    assert measured.lost == pytest.approx(lost) and measured.collapsed == (lost > 0.5)


@pytest.mark.parametrize(
    "values", [np.linspace(1, -5, 100), np.r_[np.ones(50), np.zeros(50)], np.r_[9.0, np.zeros(99)]]
)
def test_a_run_that_only_falls_has_collapsed(values):
    measured = steadiness.measure(rows(values + 0.01 * np.random.default_rng(0).normal(size=100) * (values < 1)))
    assert measured.lost == 1 and measured.collapsed and np.isnan(measured.steps_to_90)


def test_noise_alone_is_no_fall():
    noise = np.random.default_rng(0).normal(size=(400, 100))
    falls = [lost for values in noise if (lost := steadiness.lost(values)) == 1.0]
    assert len(falls) < 0.05 * len(noise)  # of all; most have a highest level that is not the first
    assert np.isnan(steadiness.lost(np.r_[1e-9, np.zeros(1)])) and np.isnan(steadiness.lost(np.ones(50)))


def test_a_step_function_reaches_its_level_at_the_step():
    values = np.r_[np.zeros(30), np.ones(70)]
    assert steadiness.measure(rows(values)).steps_to_90 == 34  # the first window of 5 that is all after the step


def test_metrics_that_are_missing_are_nan():
    measured = steadiness.measure([{"step": 0, "utility": 1.0}, {"step": 1, "utility": 2.0}])
    assert np.isnan(measured.grad_norm_variance) and np.isnan(measured.utility_variance)
    assert np.isnan(steadiness.measure([]).utility_noise)
