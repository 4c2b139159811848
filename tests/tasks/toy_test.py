"""The embedded benchmark: its rewards by hand, its truth by brute force, its prompts apart."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.config import default
from meal_jax.meal.step import Batch
from meal_jax.pareto.front import grid
from meal_jax.rollout.decode import Responses
from meal_jax.tasks import toy


def build(objectives=2, max_new=12):
    config = default()
    config.objectives = ("first", "second", "third")[:objectives]
    config.sampling.max_new = max_new
    return toy.build(config)


def responses(rows, length):
    tokens = np.full((1, len(rows), length), toy.PAD, np.int32)
    for i, row in enumerate(rows):
        tokens[0, i, : len(row)] = row
    mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    ended = np.array([[toy.END in row for row in rows]])
    return Responses(jnp.asarray(tokens), jnp.asarray(mask)[None], jnp.zeros(tokens.shape), jnp.asarray(ended))


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("row", [0, 5, 11])
def test_rewards_by_hand(objectives, row):
    task = build(objectives, max_new=5)
    prompt = Batch(*(jnp.asarray(a[row : row + 1]) for a in task.test[:3]))
    kind = int(toy.prompt_types(task.test.tokens[row], np))
    serving = [np.flatnonzero(toy.values(objectives)[kind, :, k] == 1.0) for k in range(objectives)]
    assert all(len(s) == toy.SET for s in serving)
    neutral = toy.FILLER
    a, b = serving[0][0], serving[1][1]
    rows = [[a, a, b, neutral, toy.END], [a, a, b, neutral, neutral], [toy.END], [a] * 4 + [toy.END], [a] * 5]
    r = np.asarray(toy.reward(task.reward_params, prompt, responses(rows, 5), None))[0]
    gamma = toy.gammas()[kind]
    first, second = (2 / 4) ** gamma, (1 / 4) ** gamma
    np.testing.assert_allclose(r[0, :2], [first, second], rtol=1e-5)
    np.testing.assert_allclose(r[1, :2], [first / 2, second / 2], rtol=1e-5)
    np.testing.assert_allclose(r[2], 0.0)
    np.testing.assert_allclose(r[3, :2], [1.0, 0.0], rtol=1e-5)
    assert r[4, 0] == 0.5  # too long to end: a full response, halved


def test_the_same_token_serves_different_objectives_for_different_prompts():
    first, second = toy.values(2)[..., 0] == 1, toy.values(2)[..., 1] == 1
    assert np.any(first.any(axis=0) & second.any(axis=0))


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_truth_is_what_trying_every_response_finds(objectives):
    """Responses of 3 tokens over the serving tokens, a neutral one and the end: all of them, through the real reward."""
    task = build(objectives, max_new=3)
    preferences = grid(objectives, 4)
    total = np.zeros(len(preferences))
    for row in range(toy.TYPES):
        kind = int(toy.prompt_types(task.test.tokens[row], np))
        alphabet = [int(np.flatnonzero(toy.values(objectives)[kind, :, k] == 1.0)[0]) for k in range(objectives)]
        alphabet += [toy.FILLER, toy.END]
        rows = [list(y) for n in (1, 2, 3) for y in itertools.product(alphabet, repeat=n) if toy.END not in y[:-1]]
        rows = [y for y in rows if len(y) == 3 or y[-1] == toy.END]
        prompt = Batch(*(jnp.asarray(a[row : row + 1]) for a in task.test[:3]))
        r = np.asarray(toy.reward(task.reward_params, prompt, responses(rows, 3), None))[0]
        total += (preferences @ r.T).max(axis=1)
    truth = task.truth(preferences)  # every type is equally common in `test`
    np.testing.assert_allclose((truth * preferences).sum(axis=1), total / toy.TYPES, rtol=1e-5)


def test_test_prompts_are_balanced_and_never_trained_on():
    task = build()
    kinds = toy.prompt_types(task.test.tokens, np)
    assert np.bincount(kinds).tolist() == [len(kinds) // toy.TYPES] * toy.TYPES
    assert not {r.tobytes() for r in task.test.tokens} & {r.tobytes() for r in task.train.tokens}
    assert set(np.bincount(toy.prompt_types(task.train.tokens, np), minlength=toy.TYPES) > 10) == {True}
    np.testing.assert_array_equal(toy.prompt_types(jnp.asarray(task.test.tokens)), kinds)
    assert len(np.unique(task.test.mask.sum(axis=1))) > 1  # of different lengths: padding is exercised


def test_the_benchmark_is_the_same_for_every_seed():
    a, b = build(), build()
    np.testing.assert_array_equal(a.train.tokens, b.train.tokens)
    np.testing.assert_array_equal(a.reward_params["values"], b.reward_params["values"])


@pytest.mark.parametrize(("objectives", "longest"), [(1, 4), (2, 11), (3, 6), (4, 5)])
def test_counts_are_all_that_fit_in_lexical_order(objectives, longest):
    every = [c for c in itertools.product(range(longest + 1), repeat=objectives) if sum(c) <= longest]
    np.testing.assert_array_equal(toy.counts(objectives, longest), every)


def test_what_the_toy_cannot_do_is_refused():
    config = default()
    config.objectives = tuple(f"reward {k}" for k in range(toy.OBJECTIVES + 1))
    with pytest.raises(ValueError, match="11 rewards: the toy has 10 at most"):
        toy.build(config)
    config.objectives, config.sampling.max_new = ("first", "second"), 1
    with pytest.raises(ValueError, match=r"max_new=1 leaves the toy's answers no token"):
        toy.build(config)
