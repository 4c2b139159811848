"""Two levels: the policy's loss, the meta-objective, and the exact gradient of one through one step of the other.

Letters: B prompts, N candidates, K objectives, T response tokens. Symbols: θ policy, φ weight-net, w target, ŵ proposed,
p adapted preference, a acceptance weight, r normalised rewards, y response. Plain functions of arrays; which model gave
the log-probabilities, and where the arrays live, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meal_jax.meal.preference import kl, log_accept

PyTree = Any
META = ("utility", "likelihood")
HYPERGRADIENT = ("exact", "first_order", "none")
LENGTH_NORM = ("response", "constant")


def scaled_logp(logp: jax.Array, mask: jax.Array, length_norm: str = "response") -> jax.Array:
    """log π(y | …) over a length, [B, N], from per-token log-probabilities and the mask [B, N, T].

    "response" divides by |y|, "constant" by T. On a policy's own samples E[∇ log π(y)] = 0, so under "constant" nothing but
    the acceptance moves the policy. Under "response" a short sample weighs more per token, and even equal acceptance
    pulls towards short answers; where an objective rewards these too, a policy can end in one (docs/assistant_small.md).
    """
    length = jnp.maximum(jnp.sum(mask, axis=-1), 1) if length_norm == "response" else mask.shape[-1]
    return jnp.sum(logp * mask, axis=-1) / length


def token_loss(logp: jax.Array, mask: jax.Array) -> jax.Array:
    """Plain fine-tuning: − Σ log π(y_t | …) over the response tokens of the mask, by their number."""
    return -jnp.sum(logp * mask) / jnp.maximum(jnp.sum(mask), 1)


def base_loss(
    a: jax.Array,
    logp: jax.Array,
    mask: jax.Array,
    token_kl: jax.Array | None = None,
    beta: float = 0.0,
    length_norm: str = "response",
) -> jax.Array:
    """L_base = − Σ a_n (1/|y_n|) log π_θ(y_n | x, p_n) / Σ a + β KL(π_θ ‖ π_ref): what the policy learns from.

    The KL is the mean over all response tokens of the exact divergence over the vocabulary at each.

    Args:
      a: acceptance weights [B, N].
      logp: log π_θ of each response token under its adapted preference [B, N, T].
      mask: [B, N, T] bool.
      token_kl: [B, N, T], needed if beta > 0.
      beta: β.
      length_norm: what stands in the place of |y_n|, see `scaled_logp`.

    Returns:
      A scalar.
    """
    loss = -jnp.sum(a * scaled_logp(logp, mask, length_norm)) / jnp.maximum(jnp.sum(a), 1e-6)
    if beta:
        loss += beta * jnp.sum(token_kl * mask) / jnp.maximum(jnp.sum(mask), 1)
    return loss


def advantage(w: jax.Array, r: jax.Array) -> jax.Array:
    """A_n = w_n · r_n − mean_{j ≠ n} w_n · r_j [B, N]: utility under the user's target, against the rest of the pool.

    Leaving n out of its own baseline makes the gradient unbiased; it is N/(N−1) times the difference from the mean over
    all. A pool of one has no rest and no baseline.
    """
    utility = jnp.einsum("bnk,bjk->bnj", w, r)
    own = jnp.diagonal(utility, axis1=1, axis2=2)
    others = utility.shape[-1] - 1
    return own if others == 0 else own - (jnp.sum(utility, axis=-1) - own) / others


def meta_loss(
    w: jax.Array,
    w_hat: jax.Array,
    r: jax.Array,
    logp: jax.Array,
    behaviour_logp: jax.Array,
    mask: jax.Array,
    *,
    kind: str,
    tau: float,
    rho: float,
    ratio_clip: float,
    length_norm: str = "response",
) -> jax.Array:
    """L_meta(θ', φ): how well the updated policy, under the proposals, serves the user's targets on held-out prompts.

    utility: importance-weighted REINFORCE, − mean A_n π_θ'(y_n | x, ŵ_n) / π_θ(y_n | x, ŵ_n), with the pessimistic clip
    of PPO (arXiv 1707.06347) on the ratio. likelihood: what the target would accept, − Σ P(n | w_n) (1/|y_n|) log π_θ' /
    Σ P(n | w_n). Either way the judge is w and never ŵ: a net judged by its own proposals would win by asking for what
    is easy. Plus ρ KL(ŵ ‖ w).

    Args:
      w: targets [B, N, K].
      w_hat: proposals [B, N, K], a function of φ.
      r: [B, N, K].
      logp: log π_θ' of each response token under ŵ, at the sampler's temperature [B, N, T].
      behaviour_logp: the sampler's own [B, N, T].
      mask: [B, N, T].
      kind: "utility" or "likelihood".
      tau: τ.
      rho: ρ.
      ratio_clip: ratios are clipped to [1 − ratio_clip, 1 + ratio_clip].
      length_norm: of "likelihood", as in `base_loss`.

    Returns:
      A scalar.

    Raises:
      ValueError: `kind` is neither.
    """
    if kind == "utility":
        ratio = jnp.exp(jnp.sum((logp - behaviour_logp) * mask, axis=-1))
        gain = advantage(w, r)
        clipped = jnp.clip(ratio, 1.0 - ratio_clip, 1.0 + ratio_clip)
        loss = -jnp.mean(jnp.minimum(ratio * gain, clipped * gain))
    elif kind == "likelihood":
        loss = base_loss(jnp.exp(log_accept(w, r, tau)), logp, mask, length_norm=length_norm)
    else:
        raise ValueError(f"meal.meta={kind!r} is not one of {', '.join(META)}.")
    return loss + rho * jnp.mean(kl(w_hat, w))


class Hypergradient(NamedTuple):
    """Results of `hypergradient`: the gradient in φ, both losses, the virtual policy θ' and its optimizer state."""

    grad: PyTree
    base: jax.Array
    meta: jax.Array
    virtual: PyTree
    virtual_opt: PyTree


def hypergradient(
    base: Callable[[PyTree, PyTree], jax.Array],
    meta: Callable[[PyTree, PyTree], jax.Array],
    theta: PyTree,
    phi: PyTree,
    tx: optax.GradientTransformation,
    opt_state: PyTree,
    through_update: bool = True,
) -> Hypergradient:
    """dL_meta(θ'(φ), φ)/dφ, exact, with θ' = θ + u(∇_θ L_base(θ; φ)) and u one step of the optimizer `tx`.

    With v = ∂L_meta/∂θ' and ṽ = (∂u/∂g)ᵀ v (a vector-Jacobian product through the optimizer's own update),
        dL_meta/dφ = ∂L_meta/∂φ + ∂/∂φ [ ∂/∂ε L_base(θ + ε ṽ; φ) ],
    a directional derivative by forward mode, differentiated in φ: no unrolled second-order graph is built. The identity
    is that of one-step meta-gradients (e.g. MAML, arXiv 1703.03400); Adam needs eps_root > 0, else the derivative of its
    square root is infinite where a gradient is zero.

    Args:
      base: L_base(θ, φ).
      meta: L_meta(θ', φ).
      theta: θ.
      phi: φ.
      tx: the policy's optimizer.
      opt_state: its state.
      through_update: False keeps only the direct term ∂L_meta/∂φ.

    Returns:
      Hypergradient.
    """
    loss, grads = jax.value_and_grad(base)(theta, phi)
    updates, pull_back, virtual_opt = jax.vjp(lambda g: tx.update(g, opt_state, theta), grads, has_aux=True)
    virtual = optax.apply_updates(theta, updates)
    meta_value, (v, direct) = jax.value_and_grad(meta, argnums=(0, 1))(virtual, phi)
    if not through_update:
        return Hypergradient(direct, loss, meta_value, virtual, virtual_opt)
    (direction,) = pull_back(v)
    along = lambda phi_: jax.jvp(lambda theta_: base(theta_, phi_), (theta,), (direction,))[1]  # noqa: E731
    return Hypergradient(jax.tree.map(jnp.add, direct, jax.grad(along)(phi)), loss, meta_value, virtual, virtual_opt)
