"""What is taken from every reward: by hand, in a benchmark's own rewards, in rewards of text, and in a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import stories, toy
from meal_jax import build
from meal_jax.meal.step import Batch
from meal_jax.rewards import charges, stop
from meal_jax.rollout.decode import Responses
from meal_jax.tasks import attach_rewards

NONE = {"end": 9, "copy_penalty": 0.0, "copy_free": 2, "missing_eos_penalty": 0.0}


def two_answers():
    """A prompt, an answer that copies five of its tokens and ends, and one that copies none and does not."""
    batch = Batch(jnp.array([[1, 2, 3, 4, 5, 6]]), jnp.ones((1, 6), bool), jnp.arange(1))
    tokens = jnp.array([[[2, 3, 4, 5, 6, 9], [7, 8, 7, 8, 7, 8]]])
    return batch, Responses(tokens, jnp.ones((1, 2, 6), bool), None, jnp.array([[True, False]]))


def test_charges_by_hand():
    batch, responses = two_answers()

    def charge(**fields):
        return np.asarray(charges.charge(batch, responses, **(NONE | fields)))[0].tolist()

    assert charge() == [0, 0]
    assert charge(copy_penalty=0.5) == [0.5 * (5 - 2), 0]
    assert charge(missing_eos_penalty=2.0) == [0, 2]
    assert charge(copy_penalty=0.5, missing_eos_penalty=2.0) == [1.5, 2]


def test_the_end_token_is_not_charged_as_a_copy():
    batch, responses = two_answers()
    batch = batch._replace(tokens=jnp.array([[2, 3, 1, 5, 6, 9]]))
    (charged, _), *_ = charges.charge(batch, responses, **(NONE | {"copy_penalty": 1.0, "copy_free": 0}))
    assert charged == 2  # of 5 6, which would be three with the end


def test_all_rewards_are_lowered_and_the_host_gets_the_charge_last():
    batch, responses = two_answers()

    def own(*_):
        return jnp.array([[[1.0, 10.0], [2.0, 20.0]]])

    def charge(batch, responses):
        return jnp.array([[0.5, 3.0]])

    lowered = charges.charging(own, charge, for_host=False)({}, batch, responses, None)
    np.testing.assert_array_equal(lowered[0], [[0.5, 9.5], [-1, 17]])
    with_charge = charges.charging(own, charge, for_host=True)({}, batch, responses, None)
    np.testing.assert_array_equal(with_charge[0], [[0.5, 9.5, 0.5], [-1, 17, 3]])


def test_an_answer_that_is_cut_at_a_stop_text_has_ended(monkeypatch):
    batch, responses = two_answers()
    shorter = responses.mask.at[0, 1, 3:].set(False)
    monkeypatch.setattr(stop, "cut", lambda tables, tokens, mask: shorter)
    seen = []
    stop.cutting(lambda params, batch, read, hidden: seen.append(read))({"own": {}, "stop": {}}, batch, responses, None)
    assert seen[0].ended.tolist() == [[True, True]] and (seen[0].mask == shorter).all()
    monkeypatch.setattr(stop, "cut", lambda tables, tokens, mask: mask)
    stop.cutting(lambda params, batch, read, hidden: seen.append(read))({"own": {}, "stop": {}}, batch, responses, None)
    assert seen[1].ended.tolist() == [[True, False]]


@pytest.mark.parametrize("sources", [(), ("python:meal_jax.tasks.story_text:dialogue", "heads")])
def test_a_benchmark_takes_them_wherever_its_rewards_are_computed(sources):
    config = stories.get_config()
    config.reward.sources = sources
    plain = build.build_task(config)
    config.reward.copy_penalty, config.reward.copy_free, config.reward.missing_eos_penalty = 0.25, 4, 2.0
    charged = build.build_task(config)
    prompts = plain.train.rows(np.arange(1))
    batch = Batch(*map(jnp.asarray, prompts[:3]))
    words = batch.tokens[:, None, -10:]  # the end of the prompt, word for word
    answers = Responses(words, jnp.ones(words.shape, bool), None, jnp.zeros((1, 1), bool))
    scores = []
    for task in (plain, charged):
        rewards = np.asarray(task.reward(task.reward_params, batch, answers, None))
        if sources:
            scorer = attach_rewards.scorer(task, None, None)
            rewards, _ = scorer.complete(prompts.text, np.asarray(words), np.ones(words.shape, bool), rewards)
        scores.append(rewards)
    assert scores[0].shape == (1, 1, 2)
    np.testing.assert_allclose(scores[0] - scores[1], 0.25 * (10 - 4) + 2, rtol=1e-5)


def test_the_exact_front_is_not_that_of_charged_rewards():
    config = toy.get_config()
    assert build.build_task(config).truth is not None
    config.reward.missing_eos_penalty = 0.5
    assert build.build_task(config).truth is None
