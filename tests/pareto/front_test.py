import itertools

import numpy as np
import pytest

from meal_jax.pareto import front


def inclusion_exclusion(points, reference):
    """Volume of a union of boxes [reference, point], subset by subset."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            total -= (-1) ** size * np.prod(np.maximum(np.min(subset, axis=0) - reference, 0))
    return total


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_is_the_volume_of_the_union_of_boxes(objectives, seed):
    rng = np.random.default_rng(seed)
    points, reference = (
        rng.normal(size=(7, objectives)),
        np.full(objectives, -0.5),
    )  # some points lie below the reference
    assert np.isclose(front.hypervolume(points, reference), inclusion_exclusion(points, reference), rtol=1e-12)


def test_hypervolume_of_nothing_or_of_points_that_do_not_exceed_the_reference_is_zero():
    assert front.hypervolume(np.zeros((0, 2)), [0, 0]) == 0
    assert front.hypervolume([[1, -1], [-1, 5], [0, 3]], [0, 0]) == 0
    assert front.hypervolume([[1, -1], [2, 3]], [0, 0]) == 6


@pytest.mark.parametrize("points", [[[0.0, np.nan]], [1.0, 2.0], np.zeros((3, 0))])
def test_hypervolume_refuses_what_is_no_set_of_points(points):
    with pytest.raises(ValueError, match="points must be finite and of shape"):
        front.hypervolume(points, [0, 0])


def test_hypervolume_refuses_a_reference_of_another_dimension():
    with pytest.raises(ValueError, match="reference has shape"):
        front.hypervolume(np.ones((3, 2)), [0, 0, 0])


@pytest.mark.parametrize("objectives", [2, 3])
def test_non_dominated_follows_its_definition(objectives):
    points = np.random.default_rng(0).integers(0, 4, size=(40, objectives)).astype(float)  # ties and twins
    points = np.concatenate([points, points[front.non_dominated(points)]])  # twins on the front for certain
    dominated = [any(np.all(q >= p) and np.any(q > p) for q in points) for p in points]
    np.testing.assert_array_equal(front.non_dominated(points), np.logical_not(dominated))


def test_mean_inner_product():
    points, preferences = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    assert front.mean_inner_product(points, preferences) == pytest.approx((1.75 + 3.0) / 2)
    with pytest.raises(ValueError, match="pair up"):
        front.mean_inner_product(points, preferences[:1])


def test_bootstrap_of_a_mean_is_its_normal_interval():
    scores = np.random.default_rng(0).normal(2.0, 3.0, size=(400, 1, 1))
    estimate, low, high = front.bootstrap(scores, lambda points: points[0, 0], samples=4000, seed=1)
    half = 1.96 * scores.std() / np.sqrt(400)
    assert estimate == pytest.approx(scores.mean())
    assert low == pytest.approx(scores.mean() - half, abs=0.04)
    assert high == pytest.approx(scores.mean() + half, abs=0.04)


def test_bootstrap_keeps_a_prompts_answers_together():
    noise = np.random.default_rng(0).normal(size=(50, 1, 1))
    scores = np.concatenate([noise, noise + 1.0], axis=1)  # the difference of the two points is 1 for every prompt
    estimate, low, high = front.bootstrap(scores, lambda points: points[1, 0] - points[0, 0])
    np.testing.assert_allclose([estimate, low, high], 1.0)


def test_bootstrap_of_the_identity_gives_every_point_an_interval():
    scores = np.random.default_rng(0).normal(size=(30, 11, 2))
    estimate, low, high = front.bootstrap(scores, lambda points: points, samples=200)
    assert low.shape == high.shape == (11, 2)
    assert np.all(low < estimate) and np.all(estimate < high)
    again = front.bootstrap(scores, lambda points: points, samples=200)
    np.testing.assert_array_equal(low, again[1])
    assert not np.array_equal(low, front.bootstrap(scores, lambda points: points, samples=200, seed=1)[1])


def test_grid_of_two_is_the_usual_eleven():
    want = [(0, 1), (0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, 0.6), (0.5, 0.5)]
    want += [(b, a) for a, b in reversed(want[:-1])]
    np.testing.assert_array_equal(front.grid(2), want)  # to the bit: 0.3 is 0.3, not 1 − 0.7


@pytest.mark.parametrize(("objectives", "divisions", "count"), [(1, 10, 1), (3, 10, 66), (3, 4, 15), (4, 3, 20)])
def test_grid_is_the_whole_lattice(objectives, divisions, count):
    points = front.grid(objectives, divisions)
    assert points.shape == (count, objectives)
    assert len({tuple(point) for point in points}) == count
    assert points.min() >= 0
    np.testing.assert_allclose(points.sum(axis=1), 1.0, atol=1e-12)
    for order in itertools.permutations(range(objectives)):  # symmetric between objectives
        assert {tuple(point) for point in points[:, order]} == {tuple(point) for point in points}


def test_grid_of_many_objectives_is_counted_without_all_tuples_of_counts():
    points = front.grid(12, 4)  # of 5¹² tuples
    assert points.shape == (1365, 12)
    np.testing.assert_array_equal(points[[0, 1, -1], -2:], [[0, 1], [0.25, 0.75], [0, 0]])


def test_paper_grid_is_on_the_simplex():
    points = front.paper_grid_3()
    assert points.shape == (13, 3)
    assert len({tuple(point) for point in points}) == 13
    np.testing.assert_allclose(points.sum(axis=1), 1.0, atol=1e-12)


def test_sparsity_is_the_mean_squared_gap_of_the_front():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 0.0], [0.5, 0.5]])  # the last is dominated
    assert front.sparsity(points) == pytest.approx(((1 + 4) + (9 + 1)) / 2)
    assert front.sparsity(points[:1]) == 0.0


def test_spacing_is_the_spread_of_the_nearest_distances():
    even = np.array([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    assert front.spacing(even) == 0.0
    uneven = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0]])
    assert front.spacing(uneven) == pytest.approx(np.std([2.0, 2.0, 6.0], ddof=1))
    assert front.spacing(even[:1]) == 0.0


def test_monotonicity_is_the_share_of_pairs_in_the_right_order():
    preferences = front.grid(2, 2)  # (0, 1), (0.5, 0.5), (1, 0)
    assert front.monotonicity(preferences, preferences).tolist() == [1.0, 1.0]
    assert front.monotonicity(-preferences, preferences).tolist() == [0.0, 0.0]
    assert front.monotonicity(np.array([[2.0]]), np.array([[1.0]])).tolist() == [0.5]  # one objective: no two differ
    points = np.array(
        [[0.0, 5.0], [2.0, 5.0], [1.0, 7.0]]
    )  # first: two of three pairs rise; second: one tie, two falls
    assert front.monotonicity(points, preferences) == pytest.approx([2 / 3, 0.5 / 3])


@pytest.mark.parametrize("measure", [front.sparsity, front.spacing])
def test_a_point_that_two_preferences_share_is_one_point_of_the_front(measure):
    points = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0]])
    assert measure(points[[0, 0, 1, 2, 2, 2]]) == measure(points) > 0
    assert measure(points[[0, 0]]) == 0.0
