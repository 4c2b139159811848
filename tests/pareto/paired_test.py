"""Paired comparisons over seeds: against scipy's own test, by hand, and what a sentence says."""

import numpy as np
import pytest
from scipy import stats

from meal_jax.pareto import paired

RNG = np.random.default_rng(0)


def test_a_clear_difference_is_found_and_no_difference_is_not():
    base = RNG.normal(size=10)
    ahead = base + 0.5 + 0.1 * RNG.normal(size=10)
    noise = base + 0.1 * RNG.normal(size=10)
    result = paired.compare(ahead, {"static": base, "noise": noise})
    d = result["static"]
    assert d.p == pytest.approx(stats.wilcoxon(ahead - base).pvalue) == pytest.approx(2 / 2**10)
    assert d.wins == 10 and d.low < np.mean(ahead - base) < d.high and d.low > 0.35
    assert d.adjusted == pytest.approx(2 * d.p)  # two comparisons
    same = paired.compare(noise, {"static": base})["static"]
    assert same.adjusted > 0.05 and same.low < 0 < same.high


def test_equal_results_differ_by_nothing():
    d = paired.difference(np.zeros(6))
    assert (d.mean, d.p, d.wins, d.detectable) == (0.0, 1.0, 0, 0.0)
    assert paired.as_dict(d)["effect"] is None and paired.as_dict(d)["p"] == 1.0


def test_holms_correction_by_hand():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.6, 0.7]) == [1.0, 1.0]


def test_what_could_have_been_found_is_found_in_four_of_five_tries():
    rng, seeds = np.random.default_rng(1), 10
    effect = np.mean([paired.detectable(rng.normal(size=seeds)) for _ in range(400)])
    tries = rng.normal(effect, 1.0, (4000, seeds))
    power = np.mean(stats.ttest_1samp(tries, 0.0, axis=1).pvalue < 0.05)
    assert 0.7 < power < 0.88
    assert np.isnan(paired.detectable(np.array([1.0])))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full(8, 0.2) + 0.01 * np.arange(8), "Meal is ahead of static targets in hypervolume: +0.235"),
        (-(np.full(8, 0.2) + 0.01 * np.arange(8)), "Meal is behind static targets in hypervolume"),
        (np.array([0.1, -0.2, 0.3, -0.1, 0.05, 0.0]), "are not told apart in hypervolume"),
        (np.array([0.2, 0.3]), "too few seeds"),
    ],
)
def test_the_sentence(values, words):
    assert words in paired.verdict("Meal", "static targets", "hypervolume", paired.difference(values), len(values))


def test_the_side_that_is_ahead_is_the_one_that_the_test_found_and_not_the_means():
    """One seed far off turns the mean's sign, and not that of the ranks, on which p rests."""
    values = np.array([*(0.01 * np.arange(1, 12)), -5.0])
    d = paired.difference(values)
    assert d.adjusted < 0.05 and d.mean < 0 and d.direction == 1
    sentence = paired.verdict("Meal", "static targets", "hypervolume", d, 12)
    assert sentence.startswith("Meal is ahead of static targets") and "ahead in 11 of 12 seeds" in sentence
    assert "Meal is behind" in paired.verdict("Meal", "static targets", "noise", d, 12, lower_is_better=True)
    assert [paired.difference(v).direction for v in (-values, np.zeros(6), np.array([1.0, -1.0]))] == [-1, 0, 0]


def test_the_effect_size_is_the_mean_in_standard_deviations_with_the_t_tests_own_interval():
    values = RNG.normal(0.8, 1.0, 12)
    d, low, high = paired.effect_size(values)
    assert d == pytest.approx(values.mean() / values.std(ddof=1))
    t = stats.ttest_1samp(values, 0.0).statistic
    # By its definition: at either end the observed t is a quantile of the noncentral distribution.
    assert stats.nct.cdf(t, 11, low * np.sqrt(12)) == pytest.approx(0.975, abs=1e-6)
    assert stats.nct.cdf(t, 11, high * np.sqrt(12)) == pytest.approx(0.025, abs=1e-6)
    assert (low > 0) == (stats.ttest_1samp(values, 0.0).pvalue < 0.05)
    assert paired.effect_size(-values) == pytest.approx((-d, -high, -low))
    assert np.isnan(paired.effect_size(np.full(5, 0.3))).all() and np.isnan(paired.effect_size(values[:1])).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_differences_that_are_no_numbers_are_refused(value):
    values = np.array([0.1, value, 0.3])
    for test in (paired.difference, paired.effect_size):
        with pytest.raises(ValueError, match="must be finite numbers, not"):
            test(values)


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-4, 1e-7])
def test_the_effect_sizes_interval_of_nearly_equal_differences_is_that_of_their_deviation(spread):
    """With a mean of many deviations only the deviation's own error counts: s² (n − 1) / σ² is chi-squared."""
    values = 1.0 + spread * np.array([0.3, -1.2, 0.8, 0.1, -0.4, 1.1])
    d, low, high = paired.effect_size(values)
    ends = d * np.sqrt(stats.chi2.ppf([0.025, 0.975], 5) / 5)
    assert (low, high) == pytest.approx(tuple(ends), rel=0.05)
    assert paired.effect_size(-values) == pytest.approx((-d, -high, -low))


def test_a_family_is_corrected_over_all_of_its_pairs():
    base = RNG.normal(size=8)
    pairs = {"far": (base + 1 + 0.01 * np.arange(8), base), "few": ([1.0, 2.0, 2.5], [0.0, 0.5, 1.5])}
    differences = paired.family(pairs)
    assert differences["far"].p == 2 / 2**8 and differences["far"].adjusted == 4 / 2**8
    assert differences["few"].p == differences["few"].adjusted == 0.25
    assert paired.smallest_p(8, 2) == differences["far"].adjusted and paired.smallest_p(3, 9) == 1.0


def test_less_is_ahead_where_lower_is_better():
    d = paired.difference(-0.02 - 0.001 * np.arange(8))
    sentence = paired.verdict("Meal", "static targets", "utility noise", d, 8, lower_is_better=True)
    assert sentence.startswith("Meal is ahead of static targets in utility noise: -0.0235") and "8 of 8" in sentence
    assert "Meal is behind" in paired.verdict("Meal", "static targets", "hypervolume", d, 8)
