"""The preference-weight-net g_φ (the meta-learner): from a prompt and a user's preference to a proposed preference.

Letters: B prompts, N candidates, K objectives, D width of the policy.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class WeightNet(nn.Module):
    """ŵ = softmax(log(w + ε) + f_φ(h(x), w)).

    The last layer of f starts at zero, so that at step 0 the proposal is the target, ŵ = w up to ε: training begins as
    the static method and leaves it only as far as the meta-objective pays. That the net reads the prompt and gives
    weights is the paper's; this form is our choice.

    Attributes:
      hidden: width of its two hidden layers.
      epsilon: ε, keeps a proposal from being stuck at a weight of exactly 0.
    """

    hidden: int = 64
    epsilon: float = 1e-4

    @nn.compact
    def __call__(self, h: jax.Array, w: jax.Array) -> jax.Array:
        """Proposes preferences.

        Args:
          h: [B, D] prompt features; their gradient is stopped, the net does not train the policy's trunk.
          w: [B, N, K] target preferences.

        Returns:
          ŵ [B, N, K] float32, rows sum to 1.
        """
        h = jax.lax.stop_gradient(h).astype(jnp.float32)
        # Hidden states of different policies differ widely in scale
        h = nn.LayerNorm(use_bias=False, use_scale=False)(h)
        objectives = w.shape[-1]
        x = nn.Dense(self.hidden, name="prompt")(h)[:, None] + nn.Dense(self.hidden, name="target")(
            objectives * w - 1.0
        )
        x = nn.Dense(self.hidden, name="mixed")(nn.gelu(x))
        f = nn.Dense(objectives, kernel_init=nn.initializers.zeros, name="shift")(nn.gelu(x))
        return jax.nn.softmax(jnp.log(w + self.epsilon) + f)
