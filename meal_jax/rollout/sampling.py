"""From logits to a token: temperature, top-k, top-p, forbidden tokens, and the log-probability of what was drawn.

Letters: B prompts, N candidates, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.models.attention import MASKED

DRAWS = ("gumbel", "inverse")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn; hashable, a static argument.

    Attributes:
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: keep the k most likely tokens (and ties with the k-th); 0 keeps all.
      top_p: then keep the fewest most likely tokens whose probabilities sum to at least top_p (and ties with the least of
        them); 1 keeps all.
      draw: "gumbel" takes the largest of the logits plus a random number for each token; "inverse" spends one random number
        a row and looks it up in the cumulative distribution. The same distribution, other draws; the second is much
        less work where V is large.
      watch: called on the host with (t, tokens [B, N]) as soon as response tokens t are drawn, ended responses' included; it
        changes no draw. None for none.
      compact: shares of a rollout's rows, such as (0.5, 0.25, 0.125): where no more rows are live, the others leave the batch
        (rollout/compact.py). Each share compiles the decoded token once more. () keeps all rows to the end.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    draw: str = "gumbel"
    watch: Callable[[int, np.ndarray], None] | None = dataclasses.field(default=None, repr=False)
    compact: tuple[float, ...] = ()

    def __post_init__(self):
        if self.draw not in DRAWS:
            raise ValueError(f"config.sampling.draw={self.draw!r} is not one of {', '.join(DRAWS)}.")
        if not 0 <= self.temperature < np.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature >= 0, top_k >= 0 and 0 < top_p <= 1 are needed, not {self}.")
        shares = self.compact
        if not isinstance(shares, tuple) or not all(isinstance(x, int | float) and 0 < x < 1 for x in shares):
            raise ValueError(
                f"config.sampling.compact={self.compact} must be shares of the rows between 0 and 1, such as "
                "(0.75, 0.5, 0.25), or ()."
            )
        if self.compact and self.watch is not None:
            raise ValueError("Sampling.watch reads the tokens of all rows: set config.sampling.compact=().")

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
        p = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(p < least_kept(p, sampling.top_p), MASKED, logits)
    return logits


def least_kept(p: jax.Array, top_p: float) -> jax.Array:
    """The largest t [..., 1] for which the probabilities p [..., V] that are at least t sum to at least top_p.

    By bisection over the bits of t, which for floats that are not negative are in the order of their values: 31 sums over V
    in place of a sort.
    """

    def halve(_, bounds):
        low, high = bounds  # bits: the mass at or above low is enough, that at or above high is not
        middle = low + (high - low) // 2
        t = jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(p >= t, p, 0.0), axis=-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # The likeliest alone is always kept, so nothing above it is a bound; rounding may leave all of the mass below top_p.
    high = jax.lax.bitcast_convert_type(jnp.max(p, axis=-1, keepdims=True), jnp.int32) + 1
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


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
    elif sampling.draw == "inverse":
        token = look_up(jax.vmap(jax.vmap(jax.random.uniform))(keys), logits)
    else:
        token = jax.vmap(jax.vmap(jax.random.categorical))(keys, logits)
    logp = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    return token.astype(jnp.int32), logp


def look_up(u: jax.Array, logits: jax.Array, block: int = 256) -> jax.Array:
    """The token [B, N] at which the cumulative distribution of logits [B, N, V] passes u [B, N] in [0, 1).

    First the block of tokens, by the blocks' sums, then the token in it: short sums, so that float32 loses little. A token
    of probability 0 is never taken; u has 23 bits, so one below 1e-7 comes up in steps of that size.
    """
    pad = -logits.shape[-1] % block
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, pad)), constant_values=MASKED)
    weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weight = weight.reshape(*u.shape, -1, block)

    # The first index whose cumulative sum [...] is above the threshold, and what is left of it there
    def passes(sums, threshold):
        total = jnp.cumsum(sums, axis=-1)
        threshold = jnp.minimum(threshold, total[..., -1] * (1.0 - 2.0**-23))  # rounding must not carry it past the end
        index = jnp.sum(total <= threshold[..., None], axis=-1)
        return index, threshold - jnp.take_along_axis(total - sums, index[..., None], axis=-1)[..., 0]

    sums = jnp.sum(weight, axis=-1)
    which, left = passes(sums, u * jnp.sum(sums, axis=-1))
    inside = jnp.take_along_axis(weight, which[..., None, None], axis=-2)[..., 0, :]
    index, _ = passes(inside, jnp.maximum(left, 0.0))
    return which * block + index
