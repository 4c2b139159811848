"""The benchmark of attainable objectives: who attains what, rewards against the plain toy's, its truth by brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy as config_file
from meal_jax import build, config
from meal_jax.meal.step import Batch
from meal_jax.pareto.front import grid, hypervolume
from meal_jax.rollout.decode import Responses
from meal_jax.tasks import toy, toy_attainable


def make(objectives=2, max_new=12, test_prompts=16):
    c = config_file.get_config("attainable")
    c.objectives = ("first", "second", "third")[:objectives]
    c.sampling.max_new, c.eval.prompts = max_new, test_prompts
    config.check(c)
    return build.build_task(c)


def test_a_quarter_of_the_types_attains_each_objective_alone():
    reach = toy_attainable.attainable(2)
    rows, counts = np.unique(reach, axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, [[0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(counts, [4, 4, 8])
    assert toy_attainable.attainable(3).sum(axis=1).tolist() == [1.0] * 12 + [3.0] * 4
    # Every group meets every γ, so groups differ in what is attainable alone.
    for group in rows:
        assert set(toy.gammas()[(reach == group).all(axis=1)]) == set(np.float32(toy.GAMMAS))


def test_prompts_are_the_plain_toys_and_rewards_are_its_own_where_attainable():
    task = make()
    c = config_file.get_config()
    c.eval.prompts = 16
    plain = build.build_task(c)
    for ours, theirs in ((task.train, plain.train), (task.test, plain.test)):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert task.evaluation_set != plain.evaluation_set and plain.name == "toy"
    rng = np.random.default_rng(0)
    batch = Batch(*(jnp.asarray(a) for a in task.test[:3]))
    tokens = jnp.asarray(rng.integers(toy.CONTENT, toy.VOCABULARY, (16, 8, 6)))
    rows = Responses(tokens, jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape), jnp.zeros((16, 8), bool))
    before, r = (np.asarray(t.reward(t.reward_params, batch, rows, None)) for t in (plain, task))
    assert before.any(axis=1).mean() > 0.8  # random answers serve something in most prompts
    kinds = toy.prompt_types(np.asarray(batch.tokens), np)
    np.testing.assert_array_equal(r, before * toy_attainable.attainable(2)[kinds][:, None])


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_truth_is_what_trying_every_response_finds(objectives):
    """Responses of up to 3 tokens that serve one objective each or none, through the real reward."""
    task, preferences = make(objectives, max_new=4), grid(objectives, 4)
    kinds = toy.prompt_types(task.test.tokens, np)
    best = np.zeros((len(task.test.tokens), len(preferences)))
    for i, kind in enumerate(kinds):
        alphabet = [int(np.flatnonzero(toy.values(objectives)[kind, :, k])[0]) for k in range(objectives)] + [
            toy.FILLER
        ]
        rows = [[*row, toy.END] for n in range(4) for row in itertools.product(alphabet, repeat=n)]
        tokens = np.full((1, len(rows), 4), toy.PAD, np.int32)
        for j, row in enumerate(rows):
            tokens[0, j, : len(row)] = row
        mask = np.arange(4) < np.array([len(row) for row in rows])[:, None]
        batch = Batch(*(jnp.asarray(a[i : i + 1]) for a in task.test[:3]))
        ended = jnp.ones((1, len(rows)), bool)
        r = task.reward(
            task.reward_params, batch, Responses(jnp.asarray(tokens), jnp.asarray(mask)[None], None, ended), None
        )
        best[i] = (np.asarray(r)[0] @ preferences.T).max(axis=0)
    exact = np.sum(task.truth(preferences) * preferences, axis=1)
    np.testing.assert_allclose(exact, best.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_a_free_objective_is_served_at_the_corners_and_reading_the_prompt_is_worth_much():
    task = make()
    corner = task.truth(np.array([[0.0, 1.0]]))[0]
    assert corner[0] == pytest.approx(0.25) and corner[1] == pytest.approx(0.75)
    # The best policy that answers a preference in the same proportions in every prompt wastes what cannot be attained.
    longest, reach, gamma = 11, toy_attainable.attainable(2), toy.gammas()
    share = np.array([[n, longest - n] for n in range(longest + 1)]) / longest
    blind = np.mean([share**g * mask for g, mask in zip(gamma, reach, strict=True)], axis=0)
    assert hypervolume(task.truth(grid(2, 10)), np.zeros(2)) > 1.25 * hypervolume(blind, np.zeros(2))


def test_four_objectives_are_refused():
    c = config_file.get_config("attainable")
    c.objectives = ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="at most 3"):
        toy_attainable.build(c)
