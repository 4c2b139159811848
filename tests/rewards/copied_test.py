"""The longest copied run against a search over all substrings, and what the penalty takes."""

import difflib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from configs import stories
from meal_jax import build
from meal_jax.meal.step import Batch
from meal_jax.rewards import copied
from meal_jax.rollout.decode import Responses


def draw(rng, batch=6, candidates=3, prompt=15, length=10, vocabulary=3):
    """Answers over so few tokens that runs are long: (tokens, mask) of responses and of left-padded prompts."""
    tokens = rng.integers(0, vocabulary, (batch, candidates, length))
    mask = np.arange(length) < rng.integers(0, length + 1, (batch, candidates, 1))
    prompts = rng.integers(0, vocabulary, (batch, prompt))
    return tokens, mask, prompts, np.arange(prompt) >= rng.integers(0, prompt, (batch, 1))


def longest(answer, prompt):
    matcher = difflib.SequenceMatcher(None, answer, prompt, autojunk=False)
    return matcher.find_longest_match(0, len(answer), 0, len(prompt)).size


def test_it_is_the_longest_common_substring():
    tokens, mask, prompts, real = draw(np.random.default_rng(0))
    result = copied.longest_run(*map(jnp.asarray, (tokens, mask, prompts, real)))
    for b, n in np.ndindex(*mask.shape[:2]):
        assert result[b, n] == longest(tokens[b, n][mask[b, n]].tolist(), prompts[b][real[b]].tolist())
    assert result.max() > 3 and result.min() == 0


def test_the_penalty_is_of_the_tokens_above_what_is_free():
    tokens, mask, prompts, real = draw(np.random.default_rng(1))
    batch = Batch(jnp.asarray(prompts), jnp.asarray(real), jnp.arange(6))
    responses = Responses(jnp.asarray(tokens), jnp.asarray(mask), None, None)
    reward = copied.penalised(lambda *_: jnp.ones((6, 3, 2)), penalty=0.5, free=2)
    over = np.maximum(copied.longest_run(tokens, mask, prompts, real) - 2, 0)
    np.testing.assert_allclose(reward({}, batch, responses, None), np.stack([1 - 0.5 * over] * 2, axis=-1))


def test_a_benchmark_takes_it_and_rewards_of_text_refuse_it():
    config = stories.get_config()
    plain = build.build_task(config)
    config.reward.copy_penalty, config.reward.copy_free = 0.25, 4
    charged = build.build_task(config)
    rows = types.SimpleNamespace(tokens=jnp.asarray(plain.train.tokens[:1]), mask=jnp.asarray(plain.train.mask[:1]))
    words = rows.tokens[:, -10:][:, None]  # the end of the prompt, word for word
    answer = Responses(words, jnp.ones(words.shape, bool), None, None)
    own, lowered = (task.reward(task.reward_params, rows, answer, None) for task in (plain, charged))
    np.testing.assert_allclose(own - lowered, 0.25 * (10 - 4), rtol=1e-5)
    config.reward.sources = ("heads", "python:meal_jax.tasks.story_text:short")
    with pytest.raises(ValueError, match="copy_penalty=0.25 is for rewards on the device, and cheerful reads text"):
        build.build_task(config)
