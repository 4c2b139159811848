"""RiC: its maps against their formulas, the filter, the buffer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.baselines import ric
from meal_jax.meal.step import Batch
from meal_jax.rollout.decode import Responses
from meal_jax.testing import choices

LOW, HIGH = jnp.array([-1.0, 10.0]), jnp.array([3.0, 20.0])


@pytest.mark.parametrize(
    "kind, share",
    [("l2", [0.6, 0.8]), ("linf", [6 / 7, 1.0]), ("linear", [3 / 7, 4 / 7])],
)
def test_a_preference_asks_for_its_share_of_the_way(kind, share):
    out = ric.target_scores(jnp.array([3 / 7, 4 / 7]), LOW, HIGH, kind)
    np.testing.assert_allclose(out, LOW + jnp.array(share) * (HIGH - LOW), rtol=1e-5)


@pytest.mark.parametrize("kind, ends", [("l2", (3.0, 10.0)), ("linf", (3.0, 10.0)), ("linear", (3.0, 10.0))])
def test_the_corners_ask_for_one_objective_alone(kind, ends):
    np.testing.assert_allclose(ric.target_scores(jnp.array([1.0, 0.0]), LOW, HIGH, kind), ends, rtol=1e-6)


def test_goals_lie_at_high_but_for_one_objective():
    out = np.asarray(ric.sample_targets(jax.random.key(0), 200, LOW, HIGH))
    at_high = np.isclose(out, HIGH)
    assert (at_high.sum(1) == 1).all() and 60 < at_high[:, 0].sum() < 140
    assert (out >= np.asarray(LOW) - 1e-5).all()


def test_scores_are_read_as_positions():
    out = ric.normalise_scores(jnp.array([[1.0, 25.0], [-1.0, 12.5]]), LOW, HIGH)
    np.testing.assert_allclose(out, [[0.5, 1.0], [0.0, 0.25]], rtol=1e-6)


def rows(rewards, online, written):
    n = len(rewards)
    return ric.Rows(*[jnp.zeros((n, 1))] * 4, jnp.array(rewards), jnp.array(online), jnp.int32(written))


def test_a_row_is_kept_for_one_good_score_among_its_own_kind():
    rewards = np.zeros((12, 2), np.float32)
    rewards[:5, 0] = [0, 1, 2, 3, 4]  # answers of the starting policy
    rewards[5:10, 1] = [100, 101, 102, 103, 104]  # later ones, better by far
    rewards[10:] = 1e6  # never written
    rewards[:5, 1], rewards[5:10, 0] = -np.arange(5), -np.arange(5)
    remaining = ric.passing(rows(rewards, [False] * 5 + [True] * 7, 10), 0.8)
    # The quantile 0.8 of five evenly spaced values lies between the fourth and the fifth.
    assert remaining.tolist() == [True, False, False, False, True] * 2 + [False, False]


def test_the_buffer_overwrites_its_oldest_rows():
    start = ric.Rows(
        jnp.zeros((5, 2), jnp.int32), jnp.zeros((5, 2), bool), jnp.zeros((5, 3), jnp.int32), jnp.zeros((5, 3), bool),
        jnp.zeros((5, 2)), jnp.zeros(5, bool), jnp.int32(0),
    )  # fmt: skip
    write = jax.jit(ric._write)
    for step in range(3):
        tokens = jnp.full((2, 2), step)
        answers = Responses(jnp.full((2, 1, 3), 10 + step), jnp.ones((2, 1, 3), bool), None, jnp.ones((2, 1), bool))
        rewards = jnp.array([[[step, 0.0]], [[step, 1.0]]], jnp.float32)
        start = write(start, Batch(tokens, tokens > 0, None), answers, rewards, step > 0)
    assert start.rewards.tolist() == [[2, 1], [0, 1], [1, 0], [1, 1], [2, 0]]  # prompt-major, the sixth over the first
    assert start.tokens[:, 0].tolist() == [2, 0, 1, 1, 2] and start.response[:, 0].tolist() == [12, 10, 11, 11, 12]
    assert start.online.tolist() == [True, False, True, True, True] and start.written == 6


def test_prompts_of_a_shorter_bucket_are_padded_again():
    rows = ric.Rows(
        jnp.zeros((4, 5), jnp.int32), jnp.zeros((4, 5), bool), jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 3), bool),
        jnp.zeros((4, 2)), jnp.zeros(4, bool), jnp.int32(0),
    )  # fmt: skip
    batch = Batch(jnp.array([[7, 8, 9]]), jnp.array([[False, True, True]]), None)
    answers = Responses(jnp.full((1, 2, 3), 10), jnp.ones((1, 2, 3), bool), None, jnp.ones((1, 2), bool))
    written = jax.jit(ric._write)(rows, batch, answers, jnp.ones((1, 2, 2)), True)
    assert written.tokens[:2].tolist() == [[0, 0, 7, 8, 9]] * 2
    assert written.mask[:2].tolist() == [[False, False, False, True, True]] * 2


def test_quantiles_leave_out_what_is_not_there():
    x = jnp.array([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [9.0, 9.0]])
    valid = jnp.array([True, True, True, False])
    np.testing.assert_allclose(ric.quantile(x, valid, 0.5), [1.0, 3.0])
    assert ric.quantile(x, jnp.zeros(4, bool), 0.5).tolist() == [0.0, 0.0]


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="config.ric.map='l3'"):
        ric.RicConfig(**choices(ric.RicConfig, "ric", map="l3"))
    with pytest.raises(ValueError, match="low_quantile < high_quantile"):
        ric.RicConfig(**choices(ric.RicConfig, "ric", low_quantile=0.9, high_quantile=0.1))
