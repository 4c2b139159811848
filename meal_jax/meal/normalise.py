"""Running means and variances: of objectives' rewards, so that preferences weigh comparable scales, and of prompt features.

Letters: B prompts, N candidates, K objectives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

SCALE = ("running", "pool")
LEAST = 0.1  # of a pool's standard deviation, in running ones: what hardly differs is not blown up more than tenfold

ROUNDING = 1e-6  # of a mean in float32, some units in the last place

LARGEST = 1e15  # magnitude of a reward: sums of squares of larger ones are beyond float32


def usable(reward: jax.Array) -> jax.Array:
    """Whether each of some rewards is a number that can be normalised: neither NaN nor beyond LARGEST."""
    return abs(reward) <= LARGEST


def what_is_wrong(value: float) -> str:
    """Of a reward that is not `usable`, for messages."""
    return f"beyond ±{LARGEST:g}, too large to be normalised," if math.isfinite(value) else "not a finite number"


class RunningStats(NamedTuple):
    """Mean [K], variance [K] and the number of rows they stand for (a scalar), all float32; part of the train state."""

    mean: jax.Array
    var: jax.Array
    count: jax.Array


def init_stats(objectives: int) -> RunningStats:
    """Nothing seen yet."""
    return RunningStats(jnp.zeros(objectives), jnp.ones(objectives), jnp.zeros(()))


def absorb(stats: RunningStats, rewards: jax.Array, window: float) -> RunningStats:
    """Merges a batch of rewards [..., K] into the statistics (the pairwise update of Chan et al. 1979).

    Args:
      stats: statistics so far.
      rewards: new rewards.
      window: the past counts as at most this many rewards, so that the statistics follow a policy that improves.

    Returns:
      RunningStats.
    """
    rewards = rewards.reshape(-1, rewards.shape[-1]).astype(jnp.float32)
    new, past = rewards.shape[0], jnp.minimum(stats.count, window)
    share = new / (past + new)
    gap = jnp.mean(rewards, axis=0) - stats.mean
    mean = stats.mean + share * gap
    var = (1.0 - share) * stats.var + share * jnp.var(rewards, axis=0) + share * (1.0 - share) * gap**2
    return RunningStats(mean, var, past + new)


def normalise(stats: RunningStats, rewards: jax.Array) -> jax.Array:
    """(rewards − mean) / standard deviation, [..., K], whatever a reward's scale; one that never varies maps to 0."""
    rounding = ROUNDING * stats.mean  # what is as small beside the mean counts as nothing
    return (rewards - stats.mean) * jax.lax.rsqrt(stats.var + rounding**2 + jnp.finfo(jnp.float32).tiny)


def scale_by_pool(r: jax.Array) -> jax.Array:
    """Normalised rewards [B, N, K] divided by their pool's own standard deviation [B, 1, K], at least `LEAST`.

    A prompt whose answers differ little then counts as much as one whose answers differ much: τ and λ are in standard
    deviations of the pool.
    """
    return r / jnp.maximum(jnp.std(r, axis=1, keepdims=True), LEAST)
