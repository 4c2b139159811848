"""From logits to a token: temperature, top-k, top-p, forbidden tokens, and the log-probability of what was drawn.

Letters: B prompts, N candidates, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from meal_jax.models.transformer import MASKED


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn; hashable, a static argument.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: keep the k most likely tokens (and ties with the k-th); 0 keeps all.
      top_p: then keep the fewest most likely tokens whose probabilities sum to at least top_p; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature >= 0, top_k >= 0 and 0 < top_p <= 1 are needed, not {self}.")

    @property
    def filters(self) -> bool:
        """True if some tokens that the policy gives probability are never drawn."""
        return self.temperature == 0 or self.top_k > 0 or self.top_p < 1


def filter_logits(logits: jax.Array, sampling: Sampling, forbidden: jax.Array | None = None) -> jax.Array:
    """Logits [..., V] after forbidden tokens, temperature, top-k and top-p, in that order; what is cut is MASKED."""
    if forbidden is not None:
        logits = jnp.where(forbidden, MASKED, logits)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, MASKED, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        kept = jnp.cumsum(p, axis=-1) - p < sampling.top_p  # the mass before a token; the first is always kept
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, MASKED, logits)
    return logits


def sample(
    keys: jax.Array, logits: jax.Array, sampling: Sampling, forbidden: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Draws a token for each row by a generator of its own, so that a draw depends on no other row.

    Args:
      keys: typed keys [B, N].
      logits: [B, N, V] float32.
      sampling: what to draw from.
      forbidden: [V] bool, never drawn.

    Returns:
      token [B, N] int32 and its log-probability [B, N] under the filtered distribution it was drawn from (under the
      policy itself where temperature is 0: a choice without chance has no other).
    """
    logits = filter_logits(logits, sampling, forbidden)
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1)
    else:
        token = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], axis=-1)[..., 0]
    return token.astype(jnp.int32), logp
