"""The longest copied run against a search over all substrings."""

import difflib

import jax.numpy as jnp
import numpy as np

from meal_jax.rewards import copied


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
    result = copied.longest_run(*map(jnp.asarray, (tokens, mask, prompts, real)), end=-1)
    for b, n in np.ndindex(*mask.shape[:2]):
        assert result[b, n] == longest(tokens[b, n][mask[b, n]].tolist(), prompts[b][real[b]].tolist())
    assert result.max() > 3 and result.min() == 0


def test_the_end_token_is_no_copy_though_prompts_hold_it():
    """ChatML's ends the turns of the prompt too: an empty answer copies nothing, and another one its words alone."""
    end, prompt = 9, jnp.array([[1, 2, 3, 9]])
    tokens = jnp.array([[[9, 0, 0], [2, 3, 9], [5, 3, 0]]])
    mask = jnp.array([[[True, False, False], [True] * 3, [True, True, False]]])
    assert copied.longest_run(tokens, mask, prompt, prompt > 0, end).tolist() == [[0, 2, 1]]
