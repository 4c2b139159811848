"""Two levels: the policy's loss, the meta-objective, and the exact gradient of one through one step of the other.

Letters: B prompts, N candidates, K objectives, T response tokens. Symbols: θ policy, φ weight-net, w target, ŵ proposed,
p adapted preference, a acceptance weight, r normalised rewards, y response. Plain functions of arrays; which model gave
the log-probabilities, and where the arrays live, is not known here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meal_jax.meal import subset
from meal_jax.meal.preference import kl, log_accept
from meal_jax.meal.subset import Subset

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
    over: tuple[jax.Array, jax.Array] | None = None,
    before: jax.Array | None = None,
    clip: float = 0.2,
) -> jax.Array:
    """L_base = − Σ a_n (1/|y_n|) log π_θ(y_n | x, p_n) / Σ a + β KL(π_θ ‖ π_ref): what the policy learns from.

    The KL is the mean over all response tokens of the exact divergence over the vocabulary at each. A pool that serves again
    has `before`: in the place of each token's a log π_θ stands PPO's clipped surrogate (arXiv 1707.06347),
    min(ρ a, clip(ρ, 1 ± clip) a) with ρ = π_θ / π_before, whose gradient at π_before is the same.

    Args:
      a: acceptance weights [B, N].
      logp: log π_θ of each response token under its adapted preference [B, N, T].
      mask: [B, N, T] bool.
      token_kl: [B, N, T], needed if beta > 0.
      beta: β.
      length_norm: what stands in the place of |y_n|, see `scaled_logp`.
      over: Σ a and the number of response tokens to divide by, where these prompts are a part of those that the loss is
        of; None: their own.
      before: log π of the response tokens when the pool first served [B, N, T]; None in the first pass.
      clip: of the ratios.

    Returns:
      A scalar.
    """
    accepted, tokens = (jnp.sum(a), jnp.sum(mask)) if over is None else over
    if before is None:
        gain = a * scaled_logp(logp, mask, length_norm)
    else:
        ratio, weight = jnp.exp((logp - before) * mask), a[..., None]
        surrogate = jnp.minimum(ratio * weight, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * weight)
        gain = scaled_logp(surrogate, mask, length_norm)
    loss = -jnp.sum(gain) / jnp.maximum(accepted, 1e-6)
    if beta:
        loss += beta * jnp.sum(token_kl * mask) / jnp.maximum(tokens, 1)
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
    tau: float | jax.Array,
    rho: float,
    ratio_clip: float,
    length_norm: str = "response",
    over: tuple[int, jax.Array] | None = None,
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
      tau: τ, a number or one per prompt [B].
      rho: ρ.
      ratio_clip: ratios are clipped to [1 − ratio_clip, 1 + ratio_clip].
      length_norm: of "likelihood", as in `base_loss`.
      over: the number of responses and Σ P(n | w_n) to divide by, where these prompts are a part of those that the loss
        is of; None: their own.

    Returns:
      A scalar.

    Raises:
      ValueError: `kind` is neither.
    """
    chance = jnp.exp(log_accept(w, r, tau))
    count, accepted = (chance.size, jnp.sum(chance)) if over is None else over
    if kind == "utility":
        ratio = jnp.exp(jnp.sum((logp - behaviour_logp) * mask, axis=-1))
        gain = advantage(w, r)
        clipped = jnp.clip(ratio, 1.0 - ratio_clip, 1.0 + ratio_clip)
        loss = -jnp.sum(jnp.minimum(ratio * gain, clipped * gain)) / count
    elif kind == "likelihood":
        loss = base_loss(chance, logp, mask, length_norm=length_norm, over=(accepted, 0))
    else:
        raise ValueError(f"meal.meta={kind!r} is not one of {', '.join(META)}.")
    return loss + rho * jnp.sum(kl(w_hat, w)) / count


class Level(NamedTuple):
    """One of the two losses, as a sum over prompts, so that it can be read a part at a time.

    Attributes:
      read: φ → x, a tree of [B, ...]: all through which φ reaches this loss.
      loss: (θ, x, rows) → what those prompts add to the loss, a scalar.
      rows: a tree of [B, ...] that depends neither on θ nor on φ.
      pieces: number of parts that the prompts are taken in, one after another; gradients are added up, and memory is a part's.
    """

    read: Callable[[PyTree], PyTree]
    loss: Callable[[PyTree, PyTree, PyTree], jax.Array]
    rows: PyTree = ()
    pieces: int = 1


def split_chunks(rows: PyTree, pieces: int) -> PyTree:
    """[B, ...] to [pieces, B / pieces, ...]: every `pieces`-th prompt, so that each part is spread over all devices."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), rows)


def join_chunks(parts: PyTree) -> PyTree:
    """[pieces, B / pieces, ...] to [B, ...]: the inverse of `split_chunks`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def value_and_grads(level: Level, theta: PyTree, x: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
    """The loss, its gradient in θ and its gradient in x."""
    run = jax.value_and_grad(level.loss, argnums=(0, 1))
    if level.pieces == 1:
        value, (in_theta, in_x) = run(theta, x, level.rows)
        return value, in_theta, in_x

    def add(total, part):
        value, (in_theta, in_x) = run(theta, *part)
        return jax.tree.map(jnp.add, total, (value, in_theta)), in_x

    nothing = jax.eval_shape(lambda: run(theta, x, level.rows))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (nothing[0], nothing[1][0]))
    (value, in_theta), in_x = jax.lax.scan(add, nothing, split_chunks((x, level.rows), level.pieces))
    return value, in_theta, join_chunks(in_x)


def value_and_mixed(level: Level, theta: PyTree, x: PyTree) -> tuple[jax.Array, PyTree, Callable[[PyTree], PyTree]]:
    """The loss, its gradient in θ, and a function: direction → ∂/∂ε ∂L(θ + ε direction; x)/∂x.

    The mixed derivative is the tangent of ∂L/∂x, whose own passes the first gradient has made already (`jax.linearize`), so
    it costs what is linear in the direction alone. In pieces nothing is kept from one to the other, and it makes them again.
    """
    if level.pieces == 1:

        def in_x_first(theta):
            value, (in_theta, in_x) = jax.value_and_grad(level.loss, argnums=(0, 1))(theta, x, level.rows)
            return in_x, (value, in_theta)

        _, tangent, (value, in_theta) = jax.linearize(in_x_first, theta, has_aux=True)
        return value, in_theta, tangent

    def again(direction: PyTree) -> PyTree:
        def recompute(part):
            given, rows = part

            def in_x(theta):
                return jax.grad(level.loss, argnums=1)(theta, given, rows)

            return jax.jvp(in_x, (theta,), (direction,))[1]

        return join_chunks(jax.lax.map(recompute, split_chunks((x, level.rows), level.pieces)))

    value, in_theta, _ = value_and_grads(level, theta, x)
    return value, in_theta, again


def value_and_mixed_of(
    drawn: Subset, level: Level, theta: PyTree, x: PyTree
) -> tuple[jax.Array, PyTree, Callable[[PyTree], PyTree]]:
    """`value_and_mixed`, with the loss and its gradient of all prompts and the mixed derivative of a random part of them.

    The function returned gives the derivative of the prompts taken times `drawn.scale`, and 0 for those left: in expectation,
    that of all. The prompts are read in two passes, taken and left. So the mixed derivative finds the passes of its own
    prompts made by the first gradient, no prompt is read twice, and both gradients add up to that of all.
    """
    some, put_back = subset.pick_back(x, drawn.taken)
    value, in_theta, tangent = value_and_mixed(_part(level, drawn.taken), theta, some)

    def loss_left(theta: PyTree, x: PyTree, rows: tuple[PyTree, PyTree]) -> jax.Array:
        return level.loss(theta, *rows)  # x as rows, since no derivative is taken in it

    left = _part(level._replace(loss=loss_left, rows=(x, level.rows)), drawn.left)
    value_left, in_theta_left, _ = value_and_grads(left, theta, {})

    def along(direction: PyTree) -> PyTree:
        return scale(put_back(tangent(direction)), drawn.scale)

    return value + value_left, jax.tree.map(jnp.add, in_theta, in_theta_left), along


def value_and_grads_of(drawn: Subset, level: Level, theta: PyTree, x: PyTree) -> tuple[jax.Array, PyTree, PyTree]:
    """`value_and_grads` as estimated from a random part of the prompts: sums over those taken times `drawn.scale`."""
    some, put_back = subset.pick_back(x, drawn.taken)
    value, in_theta, in_x = value_and_grads(_part(level, drawn.taken), theta, some)
    return scale((value, in_theta, put_back(in_x)), drawn.scale)


def scale(tree: PyTree, factor: float) -> PyTree:
    """A tree of arrays times a number."""
    return jax.tree.map(functools.partial(jnp.multiply, factor), tree)


def _part(level: Level, places: jax.Array) -> Level:
    """The level of the prompts at these places of their groups, in parts of as many prompts as the level's at most.

    Its loss is still theirs alone of the whole sum: what it divides by is of all prompts.
    """
    prompts = jax.tree.leaves(level.rows)[0].shape[0]
    return level._replace(rows=subset.pick(level.rows, places), pieces=max(1, places.size * level.pieces // prompts))


class Hypergradient(NamedTuple):
    """Results of `hypergradient`: the gradient in φ, both losses, the virtual policy θ' and its optimizer state."""

    grad: PyTree
    base: jax.Array
    meta: jax.Array
    virtual: PyTree
    virtual_opt: PyTree


def hypergradient(
    base: Level,
    meta: Level,
    theta: PyTree,
    phi: PyTree,
    tx: optax.GradientTransformation,
    opt_state: PyTree,
    through_update: bool = True,
    drawn: tuple[Subset, Subset] | None = None,
) -> Hypergradient:
    """dL_meta(θ'(φ), φ)/dφ, exact, with θ' = θ + u(∇_θ L_base(θ; φ)) and u one step of the optimizer `tx`.

    With v = ∂L_meta/∂θ' and ṽ = (∂u/∂g)ᵀ v (a vector-Jacobian product through the optimizer's own update),
        dL_meta/dφ = ∂L_meta/∂φ + ∂/∂φ [ ∂/∂ε L_base(θ + ε ṽ; φ) ] = ∂L_meta/∂φ + (∂x/∂φ)ᵀ ∂/∂ε [ ∂L_base/∂x (θ + ε ṽ) ],
    where x is all that L_base reads of φ: one forward-mode pass, no unrolled second-order graph. The identity is that of
    one-step meta-gradients (e.g. MAML, arXiv 1703.03400); Adam needs eps_root > 0, else the derivative of its square root is
    infinite where a gradient is zero. Everything is a sum over prompts, and exact however many pieces they are taken in.

    With `drawn` it is an unbiased estimate. L_meta, and with it v, is a sum over some prompts, scaled; so is the mixed
    derivative. Both enter linearly and are drawn independently, so the mean over all draws is the exact hypergradient. θ' is
    of all prompts of L_base, as without `drawn`.

    Args:
      base: L_base.
      meta: L_meta, whose θ is θ'.
      theta: θ.
      phi: φ.
      tx: the policy's optimizer.
      opt_state: its state.
      through_update: False keeps only the direct term ∂L_meta/∂φ.
      drawn: prompts of L_base that the mixed derivative is of, and those that L_meta is of; None for all.

    Returns:
      Hypergradient; with `drawn`, `meta` is an estimate as well.
    """
    mixed_of, grads_of = value_and_mixed, value_and_grads
    if drawn is not None:
        mixed_of = functools.partial(value_and_mixed_of, drawn[0])
        grads_of = functools.partial(value_and_grads_of, drawn[1])
    x, pull_x = jax.vjp(base.read, phi)
    if through_update:
        loss, grads, along = mixed_of(base, theta, x)
    else:
        loss, grads, _ = value_and_grads(base, theta, x)
    updates, pull_update, virtual_opt = jax.vjp(lambda g: tx.update(g, opt_state, theta), grads, has_aux=True)
    virtual = optax.apply_updates(theta, updates)
    y, pull_y = jax.vjp(meta.read, phi)
    meta_value, v, in_y = grads_of(meta, virtual, y)
    (grad,) = pull_y(in_y)
    if through_update:
        (direction,) = pull_update(v)
        grad = jax.tree.map(jnp.add, grad, *pull_x(along(direction)))
    return Hypergradient(grad, loss, meta_value, virtual, virtual_opt)
