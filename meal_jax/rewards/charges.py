"""What is taken from every reward of an answer, whatever the reward reads: for copies, and for an answer that does not end.

A reward that was fitted on answers of people may like a copy of the prompt, which none of them was: a policy soon finds that
(docs/reddit_small.md). And an answer that is cut at `config.sampling.max_new` tokens has no end token to learn from, so a
policy whose reward likes the beginnings of answers unlearns to end them.

Letters: B prompts, N candidates, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from meal_jax.meal.step import Batch
from meal_jax.rewards.copied import longest_run
from meal_jax.rollout.decode import Responses


def charge(
    batch: Batch, responses: Responses, *, end: int, copy_penalty: float, copy_free: int, missing_eos_penalty: float
) -> jax.Array:
    """What each answer is charged, [B, N] float32: `config.reward`'s fields of these names say for what; `end` is a token."""
    taken = jnp.where(responses.ended, 0.0, missing_eos_penalty)
    if copy_penalty:
        run = longest_run(responses.tokens, responses.mask, batch.tokens, batch.mask, end)
        taken = taken + copy_penalty * jnp.maximum(run - copy_free, 0)
    return taken


def charging(
    reward: Callable[..., jax.Array], charge: Callable[[Batch, Responses], jax.Array], *, for_host: bool
) -> Callable[..., jax.Array]:
    """`Setup.reward` less the charge; with `for_host` the charge follows as a last column, for the rewards of text."""

    def charged(params, batch: Batch, responses: Responses, hidden) -> jax.Array:
        taken = charge(batch, responses)[..., None]
        lowered = reward(params, batch, responses, hidden) - taken
        return jnp.concatenate([lowered, taken], axis=-1) if for_host else lowered

    return charged
