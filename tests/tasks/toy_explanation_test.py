"""An explained answer has the letters and the rewards that the benchmark's own reward gives."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal.step import Batch
from meal_jax.tasks import toy, toy_explanation
from tests.tasks.toy_test import responses

NAMES = ("first", "second", "third")


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_sums_are_the_rewards(objectives):
    prompts, longest = toy.make_prompts(1, seed=3, first_id=0), 7
    table, rng = toy.values(objectives), np.random.default_rng(0)
    params = {"values": jnp.asarray(table), "gammas": jnp.asarray(toy.gammas())}
    for row in range(toy.TYPES):
        serving = [np.flatnonzero(table[row, :, k]) for k in range(objectives)]
        answers = [
            [serving[0][0], serving[1][2], serving[0][1], 3, toy.END],
            [*rng.choice(serving[-1], longest - 1), toy.END],
            [*rng.integers(toy.FIRST, toy.VOCABULARY, longest)],
        ]
        batch = Batch(*prompts.rows(np.array([row]))[:3])
        rewards = np.asarray(toy.reward(params, batch, responses(answers, longest)))[0]
        for answer, expected in zip(answers, rewards, strict=True):
            text = toy_explanation.explain(
                prompts.text[row], toy.show(answer), NAMES[:objectives], range(objectives), longest
            )
            sums = [float(value) for value in re.findall(r"= (\d\.\d\d)", text)]
            np.testing.assert_allclose(sums, expected, atol=5.1e-3)
            assert ("did not end" in text) == (toy.END not in answer)
        first = toy_explanation.explain(prompts.text[row], toy.show(answers[0]), NAMES, range(objectives), longest)
        assert first.startswith("A B A · end: first (2/6)^")


def test_other_rewards_and_other_texts_are_not_explained():
    text = toy_explanation.explain("< 3 7 11", "> ", NAMES[:2], (1,), 12)
    assert text.startswith("end: second (0/11)^") and "first" not in text
    for prompt, response in (("< 3 7", "a word"), ("hello", ">"), ("< 3 7", "64"), ("< 3 7", "-1")):
        assert toy_explanation.explain(prompt, response, NAMES[:2], (0, 1), 12) is None


def test_the_rule_has_the_benchmarks_numbers():
    rule = toy_explanation.rule(NAMES[:2], 12)
    assert "A the reward first and B the reward second" in rule and "(n / 11)^γ" in rule and "0.4, 0.5, 0.6, 1" in rule
