"""Losses on pairs of answers: DPO (arXiv 2305.18290) and its multi-objective form MODPO (arXiv 2310.03708).

Letters: B prompts, N candidates, T response tokens. Δ stands for log π_θ(y | x) − log π_ref(y | x) of a whole answer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """The settings of the methods that learn from pairs; the fields are explained in `meal_jax/config.py`."""

    beta: float
    divisions: int
    candidates: int
    epochs: int
    sft_steps: int | None
    lam: float

    def __post_init__(self):
        if self.candidates < 2:
            raise ValueError(f"config.dpo.candidates={self.candidates} must be at least 2: a pair needs two answers.")
        if self.beta <= 0:
            raise ValueError(f"config.dpo.beta={self.beta} must be above 0.")


def dpo_loss(chosen: jax.Array, rejected: jax.Array, beta: float) -> jax.Array:
    """− log σ(β (Δ_chosen − Δ_rejected)), elementwise (arXiv 2305.18290, eq. 7)."""
    return jax.nn.softplus(-beta * (chosen - rejected))


def modpo_loss(chosen: jax.Array, rejected: jax.Array, beta: float, main: jax.Array, margin: jax.Array) -> jax.Array:
    """− log σ((β (Δ_chosen − Δ_rejected) − margin) / w_main), elementwise (arXiv 2310.03708, section 3.2).

    Args:
      chosen, rejected: Δ of the pair, which the main objective labels.
      beta: β.
      main: the main objective's weight, above 0.
      margin: Σ_j w_j (m_j(chosen) − m_j(rejected)) over the other objectives.
    """
    return jax.nn.softplus(-(beta * (chosen - rejected) - margin) / main)


def noisy_modpo_loss(
    first: jax.Array, second: jax.Array, beta: float, main: jax.Array, margin: jax.Array, right: jax.Array
) -> jax.Array:
    """`modpo_loss` in expectation over the label, which is the first answer with probability `right`.

    `margin` is the first answer's minus the second's. The minimum is at β (Δ_first − Δ_second) =
    w_main log(right / (1 − right)) + margin.
    """
    chosen = modpo_loss(first, second, beta, main, margin)
    return right * chosen + (1.0 - right) * modpo_loss(second, first, beta, main, -margin)


def best_and_worst(score: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Indices [B] of a prompt's best and worst candidates by score [B, N], and whether they differ in score [B]."""
    best, worst = jnp.argmax(score, axis=-1), jnp.argmin(score, axis=-1)
    return best, worst, jnp.max(score, axis=-1) > jnp.min(score, axis=-1)


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """One candidate of each prompt: x [B, N, ...], index [B] → [B, ...]."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]


def pair_mean(loss: jax.Array, proper: jax.Array) -> jax.Array:
    """Mean of loss [B] over the prompts whose two answers differ in score (`proper`)."""
    return jnp.sum(jnp.where(proper, loss, 0.0)) / jnp.maximum(jnp.sum(proper), 1)
