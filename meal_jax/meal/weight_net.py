"""The preference-weight-net g_φ (the meta-learner): from a prompt and a user's preference to a proposed preference.

Letters: B prompts, N candidates, K objectives, D width of the policy.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from meal_jax.meal.normalise import RunningStats, absorb, init_stats

PyTree = Any
FEATURES = ("layer", "standard")
MOMENTS = "moments"  # among φ, but counted, not learned
FARTHEST = 5.0  # standard deviations from the mean at which a standardised feature is cut


class WeightNet(nn.Module):
    """ŵ = softmax(log(w + ε) + f_φ(h(x), w)).

    The last layer of f starts at zero, so that at step 0 the proposal is the target, ŵ = w up to ε: training begins as
    the static method and leaves it only as far as the meta-objective pays. That the net reads the prompt and gives
    weights is the paper's; this form is our choice.

    Attributes:
      hidden: width of its two hidden layers.
      epsilon: ε, keeps a proposal from being stuck at a weight of exactly 0.
      features: how it reads h. "layer": in the mean and deviation of the prompt's own features. "standard": after that, each
        feature in its standard deviations over prompts (`absorb_prompts`). The mean hidden states of two prompts of a language
        model hardly differ: a few large features are alike in all of them, and a net that reads "layer" takes long to tell
        prompts apart.
    """

    hidden: int = 64
    epsilon: float = 1e-4
    features: str = "layer"

    @nn.compact
    def __call__(self, h: jax.Array, w: jax.Array) -> jax.Array:
        """Proposes preferences.

        Args:
          h: [B, D] prompt features; their gradient is stopped, the net does not train the policy's trunk.
          w: [B, N, K] target preferences.

        Returns:
          ŵ [B, N, K] float32, rows sum to 1.
        """
        h = layer_features(h)
        if self.features == "standard":
            moments = self.param(MOMENTS, lambda key: init_stats(h.shape[-1])._asdict())
            h = standardise(h, RunningStats(**jax.lax.stop_gradient(moments)))
        objectives = w.shape[-1]
        x = nn.Dense(self.hidden, name="prompt")(h)[:, None] + nn.Dense(self.hidden, name="target")(
            objectives * w - 1.0
        )
        x = nn.Dense(self.hidden, name="mixed")(nn.gelu(x))
        f = nn.Dense(objectives, kernel_init=nn.initializers.zeros, name="shift")(nn.gelu(x))
        return jax.nn.softmax(jnp.log(w + self.epsilon) + f)


def layer_features(pooled: jax.Array) -> jax.Array:
    """Prompt features [B, D] in the mean and deviation of each prompt's own, without a gradient; float32."""
    # Hidden states of different policies differ widely in scale
    return nn.LayerNorm(use_bias=False, use_scale=False).apply({}, jax.lax.stop_gradient(pooled).astype(jnp.float32))


def standardise(h: jax.Array, stats: RunningStats) -> jax.Array:
    """Features [B, D] in standard deviations over the prompts that `stats` counted, cut at ±FARTHEST."""
    return jnp.clip((h - stats.mean) * jax.lax.rsqrt(stats.var + 1e-8), -FARTHEST, FARTHEST)


def absorb_prompts(phi: PyTree, pooled: jax.Array, window: float) -> PyTree:
    """φ with a batch of prompt features [B, D] merged into its moments; φ itself if it has none."""
    if MOMENTS not in phi:
        return phi
    return phi | {MOMENTS: absorb(RunningStats(**phi[MOMENTS]), layer_features(pooled), window)._asdict()}
