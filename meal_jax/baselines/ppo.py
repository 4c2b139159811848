"""Proximal policy optimisation of one scalar reward, the basis of MORLHF and Rewarded Soups.

Letters: B prompts, N candidates, T response tokens, D width.

A response is an episode, a token an action. The reward of a token is −κ (log π_old − log π_ref), and the last token also
gets the response's scalar reward R (Ziegler et al. 2019, arXiv 1909.08593). All log-probabilities are at the sampler's
temperature: at another one, the ratio of a fresh sample is not 1 and the KL estimate can become negative.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

ESTIMATORS = ("gae", "rloo")
SOUPS = ("factor", "merged")


@dataclasses.dataclass(frozen=True)
class PpoConfig:
    """The settings of PPO; the fields are explained in `meal_jax/config.py`."""

    divisions: int
    estimator: str
    candidates: int
    epochs: int
    minibatches: int
    clip: float
    value_clip: float
    value_coef: float
    gamma: float
    gae_lambda: float
    kl: float
    kl_target: float | None
    kl_horizon: float
    soup: str

    def __post_init__(self):
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"config.ppo.estimator={self.estimator!r} is not one of {', '.join(ESTIMATORS)}.")
        if self.estimator == "rloo" and self.candidates < 2:
            raise ValueError(
                "config.ppo.estimator=rloo compares the candidates of a prompt: set config.ppo.candidates >= 2."
            )
        if self.soup not in SOUPS:
            raise ValueError(f"config.ppo.soup={self.soup!r} is not one of {', '.join(SOUPS)}.")
        if self.kl <= 0:
            raise ValueError(
                f"config.ppo.kl={self.kl} must be above 0: without a KL penalty the policy stops writing its language."
            )


class Advantage(NamedTuple):
    """Per token, [..., T]: the advantage, and the return that is the value head's target."""

    advantage: jax.Array
    value_target: jax.Array


def token_rewards(reward: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, kl: jax.Array) -> jax.Array:
    """−κ (log π_old − log π_ref) at each token, and R [...] added at the last token; 0 after the end. All [..., T]."""
    position = jnp.arange(mask.shape[-1])
    last = position == jnp.sum(mask, axis=-1, keepdims=True) - 1
    return jnp.where(mask, -kl * (logp - ref_logp), 0.0) + jnp.where(last, reward[..., None], 0.0)


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float) -> Advantage:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438), backwards in time by `lax.scan`.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, V and A being 0 after a response's last token.

    Args:
      rewards, values: [..., T] float32.
      mask: [..., T] bool, True on the response's tokens (a prefix).
      gamma, lam: γ, λ.

    Returns:
      Advantage; the value's target is A + V. Advantages are 0 outside the mask.
    """
    values = jnp.where(mask, values, 0.0)
    following = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
    delta = jnp.where(mask, rewards + gamma * following - values, 0.0)
    delta_by_time = jnp.moveaxis(delta, -1, 0)

    def back(later, delta_t):
        now = delta_t + gamma * lam * later
        return now, now

    _, advantage = jax.lax.scan(back, jnp.zeros(delta.shape[:-1]), delta_by_time, reverse=True)
    advantage = jnp.where(mask, jnp.moveaxis(advantage, 0, -1), 0.0)
    return Advantage(advantage, advantage + values)


def leave_one_out(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """RLOO's advantage (arXiv 2402.14740): a response's total reward minus the mean of its prompt's other candidates.

    Args:
      rewards: per token [B, N, T].
      mask: [B, N, T] bool.

    Returns:
      [B, N, T], the same at each token of a response.
    """
    total = jnp.sum(rewards, axis=-1)
    others = total.shape[-1] - 1
    gain = total - (jnp.sum(total, axis=-1, keepdims=True) - total) / others
    return jnp.where(mask, gain[..., None], 0.0)


def estimate(rewards: jax.Array, values: jax.Array, mask: jax.Array, o: PpoConfig) -> Advantage:
    """Whitened advantages [B, N, T] by the configured estimator; RLOO ignores values."""
    if o.estimator == "gae":
        advantage, target = gae(rewards, values, mask, o.gamma, o.gae_lambda)
    else:
        advantage, target = leave_one_out(rewards, mask), values
    return Advantage(whiten(advantage, mask), target)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x over the tokens of the mask."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x to mean 0 and variance 1 over the tokens of the mask."""
    mean = masked_mean(x, mask)
    return (x - mean) * jax.lax.rsqrt(masked_mean(jnp.square(x - mean), mask) + 1e-8)


def policy_loss(logp, old_logp, advantage, mask, clip: float) -> jax.Array:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), a mean over tokens."""
    ratio = jnp.exp(jnp.where(mask, logp - old_logp, 0.0))
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -masked_mean(jnp.minimum(ratio * advantage, clipped * advantage), mask)


def value_loss(value, old_value, target, mask, clip: float) -> jax.Array:
    """½ (V − target)², pessimistic about a V that changed by more than `clip`; a mean over tokens."""
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * masked_mean(jnp.maximum(jnp.square(value - target), jnp.square(clipped - target)), mask)


def next_kl(kl: jax.Array, measured: jax.Array, target: float | None, horizon: float, samples: int) -> jax.Array:
    """The adaptive coefficient of Ziegler et al. 2019: it grows if the measured KL is above `target`; None keeps it fixed."""
    if target is None:
        return kl
    return kl * (1.0 + jnp.clip(measured / target - 1.0, -0.2, 0.2) * samples / horizon)
