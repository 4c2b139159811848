"""Evaluation: batches that do not divide the prompts, and the columns that the host adds."""

import numpy as np
import pytest

from meal_jax import evaluate
from meal_jax.rewards.text import TextScorer
from meal_jax.tasks.task import Prompts

ROWS, PREFERENCES = 5, np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
PROMPTS = Prompts(
    np.arange(ROWS, dtype=np.int32)[:, None],
    np.ones((ROWS, 1), bool),
    np.arange(ROWS, dtype=np.int32) + 10,
    tuple("abcde"),
)


def answer(state, frozen, batch, w, key):
    """Response [prompt's token, number of the preference]; the device's column is their sum."""
    tokens = np.stack(np.broadcast_arrays(batch.tokens, np.arange(3)), axis=-1)
    return evaluate.Answers(
        scores=tokens.sum(-1, keepdims=True).astype(np.float32),
        tokens=tokens,
        mask=np.ones(tokens.shape, bool),
        ended=np.ones(tokens.shape[:2], bool),
        proposals=w,
    )


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_every_prompt_is_answered_once_in_order_and_scored_with_its_own_text(batch_size):
    asked = []

    def reward(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return [float(r.replace(" ", "")) for r in responses]

    scorer = TextScorer(("host", "device"), (reward, None), {}, lambda row: " ".join(map(str, row)))
    found = evaluate.evaluate(
        answer, None, None, PROMPTS, PREFERENCES, batch_size=batch_size, seed=0, place=lambda x: x, scorer=scorer
    )
    assert asked == [
        ("abcde"[e], f"{e} {m}") for e in range(ROWS) for m in range(3)
    ]  # repeats that fill up are not scored
    wanted = [[[10 * e + m, e + m] for m in range(3)] for e in range(ROWS)]
    np.testing.assert_array_equal(found.scores, wanted)
    np.testing.assert_array_equal(found.tokens[..., 0], np.arange(ROWS)[:, None].repeat(3, 1))
    np.testing.assert_allclose(found.proposals, np.broadcast_to(PREFERENCES, (ROWS, 3, 2)))
