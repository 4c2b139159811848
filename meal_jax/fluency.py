"""Whether answers are still language: what a front's points cost in fluency, beside their rewards.

Three measures, none of which training sees:

    log-likelihood   of an answer's tokens under the frozen base, nats per token: the policy that was started from, without
                     adapters or preference. Word salad is unlikely; so is an answer that says what the base never would.
    repetitive       share of answers that loop, `evaluate.repeats`. A loop is likely under the base, so read both.
    distinct-2       share of different pairs of neighbouring tokens among all pairs in a preference's answers (Li et al. 2016,
                     arXiv 1510.03055): low where every prompt gets the same answer, which neither of the others shows.

Letters: B prompts, N candidates, E evaluation prompts, M preferences, T response tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.meal.state import Batch, Frozen, Setup
from meal_jax.models.policy import token_stats
from meal_jax.rollout.decode import Responses


def log_likelihood(setup: Setup, frozen: Frozen, batch: Batch, responses: Responses, hidden=None) -> jax.Array:
    """Mean log-likelihood per token of responses under `setup.judge_of_fluency`, at temperature 1: [B, N] float32.

    Args:
      setup: with a base that fluency is measured by.
      frozen: holds its parameters.
      batch: the prompts.
      responses: [B, N, T]; an empty one has 0.
      hidden: [B, N, T, D], the base's hidden states, where they are known; None runs it once.
    """
    apply = functools.partial(setup.judge_of_fluency.apply, {"params": frozen.reference})
    if hidden is None:
        unused = jnp.zeros((*responses.tokens.shape[:2], len(setup.objectives)))
        prompt = apply(batch.tokens, batch.mask, method="prefill")
        hidden = apply(prompt, unused, responses.tokens, method="respond")
    unembed = functools.partial(apply, method="unembed")
    logp = token_stats(unembed, hidden, responses.tokens, forbidden=setup.forbidden, chunk=setup.chunk).logp
    total = jnp.sum(jnp.where(responses.mask, logp, 0.0), axis=-1)
    return total / jnp.maximum(jnp.sum(responses.mask, axis=-1), 1)


def distinct(tokens: np.ndarray, mask: np.ndarray, gram: int = 2) -> np.ndarray:
    """Different runs of `gram` tokens as a share of all, over the answers [E, M, T] to each preference: [M]; 0 of none."""
    out = np.zeros(tokens.shape[1])
    for m in range(tokens.shape[1]):
        rows = [row[real].tolist() for row, real in zip(tokens[:, m], mask[:, m], strict=True)]
        grams = [tuple(row[i : i + gram]) for row in rows for i in range(len(row) - gram + 1)]
        out[m] = len(set(grams)) / max(len(grams), 1)
    return out
