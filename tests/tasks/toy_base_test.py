"""The embedded benchmark's base: what it is fitted to by counting, that it learns it, and that it starts every method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax import build
from meal_jax.config import check, default
from meal_jax.models.policy import Conditioning, Policy, init_params
from meal_jax.runtime import sharding
from meal_jax.tasks import toy, toy_base

LENGTH = 6


def draw(rows=4000):
    serves = np.zeros((rows, toy.VOCABULARY, 2), np.float32)
    serves[:, [20, 21], 0] = serves[:, [30, 31], 1] = 1.0
    content = (np.arange(toy.VOCABULARY) >= toy.CONTENT).astype(np.float32)
    key = jax.random.key(0)
    return toy_base.draw_answers(key, jnp.asarray(serves), jnp.asarray(content), LENGTH, toy.END, toy.PAD)


def test_answers_end_in_time_and_have_every_length_alike():
    tokens, mask = map(np.asarray, draw())
    lengths = mask.sum(axis=1)
    np.testing.assert_allclose(np.bincount(lengths)[1:], len(tokens) / LENGTH, rtol=0.15)
    assert np.all(tokens[np.arange(len(tokens)), lengths - 1] == toy.END)
    assert np.all(tokens[~mask] == toy.PAD)
    assert np.all(tokens[mask & (tokens != toy.END)] >= toy.CONTENT)


def test_half_of_the_content_serves_and_neither_objective_is_favoured():
    tokens, mask = map(np.asarray, draw(rows=20_000))
    content = mask & (tokens != toy.END)
    first, second = (np.isin(tokens, ids) & content for ids in ([20, 21], [30, 31]))
    other = 2 / (toy.VOCABULARY - toy.CONTENT)  # of what may be any token, the share that serves an objective by chance
    expected = 0.25 + 0.5 * other
    np.testing.assert_allclose([first.sum() / content.sum(), second.sum() / content.sum()], expected, rtol=0.06)
    # Shares differ from answer to answer: two tokens of one answer serve alike more often than two of different answers, by
    # twice the variance of the chance u s + (1 - u) c that one does.
    two, c = content[:, 0] & content[:, 1], other
    a, b = first[two, 0], first[two, 1]
    variance = (1 / 3 - c + c**2) / 3 - (0.5 * (0.5 - c)) ** 2
    np.testing.assert_allclose(np.mean(a == b) - np.mean(a == np.roll(b, 1)), 2 * variance, atol=0.02)


@pytest.fixture(scope="module")
def config():
    c = default()
    c.policy.pretrain, c.policy.layers, c.policy.width, c.policy.hidden = 350, 1, 32, 64
    c.sampling.max_new = LENGTH
    return c


def test_it_learns_to_end_and_which_tokens_serve_a_prompt(config):
    task = toy.build(config)
    policy = Policy(task.transformer, Conditioning(kind="none", objectives=2))
    params = {"transformer": task.weights(None)}
    tokens, mask = jnp.asarray(task.test.tokens), jnp.asarray(task.test.mask)
    hidden = policy.apply({"params": params}, tokens, mask, method="prefill").last
    p = np.asarray(jax.nn.softmax(policy.apply({"params": params}, hidden, method="unembed")))
    serves = toy.values(2)[toy.prompt_types(task.test.tokens, np)]  # [R, V, K]
    mass = np.einsum("rv,rvk->rk", p, serves).mean(axis=0)
    # The first token is the end with chance 1/6; of the rest a quarter serves each objective, and 3 of 45 by chance.
    np.testing.assert_allclose(mass, 5 / 6 * (0.25 + 0.5 * 3 / 45), rtol=0.25)
    np.testing.assert_allclose(p[:, toy.END].mean(), 1 / 6, rtol=0.25)
    assert p[:, : toy.CONTENT].sum(axis=1).mean() - p[:, toy.END].mean() < 0.02


@pytest.mark.parametrize("rank", [0, 4])
def test_the_policy_starts_from_it(config, rank, monkeypatch):
    asked = {}

    # What the real one returns, but quickly: its tree filled with 7.
    def pretrain(transformer, prompts, serves, content, **options):
        asked.update(options, serves=serves.shape, lora=transformer.lora)
        policy = Policy(transformer, Conditioning(kind="none", objectives=2))
        params = jax.eval_shape(functools.partial(init_params, policy), jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0, leaf.dtype), params["transformer"])

    monkeypatch.setattr(toy, "pretrain", pretrain)
    config = config.copy_and_resolve_references()
    config.policy.lora_rank = rank
    task = build.build_task(config)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        theta, frozen = build.make_policy(build.build_setup(config, task), task, jax.random.key(1), mesh)
    assert (asked["steps"], asked["length"], asked["end"], asked["lora"]) == (350, LENGTH, toy.END, None)
    assert asked["serves"][0] >= len(task.train.id) and asked["serves"][1:] == (toy.VOCABULARY, 2)
    for leaf in jax.tree.leaves(frozen.policy if rank else theta["transformer"]):
        np.testing.assert_array_equal(leaf, 7.0)
    if rank:
        assert all(np.any(leaf != 7.0) for leaf in jax.tree.leaves(theta))


def test_other_benchmarks_refuse_it():
    config = default()
    config.task, config.policy.pretrain = "synthetic", 10
    with pytest.raises(ValueError, match="config.policy.pretrain=10 makes a base for the task toy"):
        check(config)
