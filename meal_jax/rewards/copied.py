"""Answers that copy their prompt: how long the longest copied run is.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def longest_run(tokens: jax.Array, mask: jax.Array, prompt: jax.Array, prompt_mask: jax.Array, end: int) -> jax.Array:
    """Tokens of the longest run that an answer shares with its prompt, [B, N] int32.

    The longest common substring, by its recurrence: the run that ends at response token t and prompt token s is one longer
    than that at t − 1 and s − 1 where the two tokens are equal, and else 0.

    Args:
      tokens, mask: responses [B, N, T].
      prompt, prompt_mask: [B, S].
      end: the token that ends a response. It does not count as copied, though it ends the turns of a prompt too (ChatML's).
    """
    mask = mask & (tokens != end)

    def follow(state, now):
        run, longest = state  # run [B, N, S]: of the runs that end at this response token
        token, real = now  # [B, N]
        equal = (token[..., None] == prompt[:, None]) & real[..., None] & prompt_mask[:, None]
        before = jnp.pad(run[..., :-1], ((0, 0), (0, 0), (1, 0)))
        run = jnp.where(equal, before + 1, 0)
        return (run, jnp.maximum(longest, run.max(-1))), None

    batch, candidates, _ = tokens.shape
    start = (jnp.zeros((batch, candidates, prompt.shape[1]), jnp.int32), jnp.zeros((batch, candidates), jnp.int32))
    rows = (jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(mask, -1, 0))
    return jax.lax.scan(follow, start, rows)[0][1]
