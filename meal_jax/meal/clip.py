"""The clip of the policy's gradient, with a derivative everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients whose norm over all leaves is above `max_norm` down to it.

    `optax.clip_by_global_norm` to the bit, whose derivative however is NaN where every gradient is zero: its square root
    there has an infinite one. The exact hypergradient takes that derivative, and a half-batch in which nothing is accepted
    has such gradients. Here the norm's derivative at zero is 0, as gradients shorter than `max_norm` are left as they are.
    """

    def update(grads, state, params=None):
        del params
        square = optax.tree.norm(grads, squared=True)
        norm = jnp.sqrt(jnp.where(square == 0, 1.0, square))  # where it is 1 for 0, nothing is divided by it
        short = (square == 0) | (norm < max_norm)

        def clipped(g):
            return jax.lax.select(short, g, (g / norm.astype(g.dtype)) * max_norm)

        return jax.tree.map(clipped, grads), state

    return optax.GradientTransformation(optax.init_empty_state, update)
