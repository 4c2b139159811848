"""Preferences as points of a simplex: targets, who is accepted under a preference, and how a response reshapes one.

Letters: B prompts, N candidates, K objectives. Δ is the simplex over the K objectives. Symbols: w target preference (the
user's), ŵ proposed preference (the weight-net's), p adapted preference, r normalised rewards, τ temperature of
acceptance, λ pull of the responses. The formulas are this project's formalisation of Meal (arXiv 2604.24178), whose
public text gives the idea and the names λ and τ, but no equations.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

TINY = 1e-30  # a preference of exactly 0 stays 0 (to float precision) instead of making a logarithm infinite
TARGETS = ("stratified", "edges", "dirichlet", "shared")
ACCEPT = ("soft", "sample", "top1")
REJECTED = ("adapted", "proposed")
BASELINE = ("none", "pool", "leave_one_out", "accepted")


def draw_targets(
    key: jax.Array,
    prompt_id: jax.Array,
    candidates: int,
    objectives: int,
    how: str,
    gap: tuple[float, float] | None = None,
) -> jax.Array:
    """Target preferences w [B, N, K], a function of (key, prompt id) alone.

    Args:
      key: typed key of the step.
      prompt_id: [B] int.
      candidates: N.
      objectives: K.
      how: "stratified" spreads a prompt's N targets over the simplex (K = 2: one in each N-th of the interval, jittered;
        K > 2: independent uniform draws, since a grid of few points covers little); "edges" does the same with more at the
        ends, by the density of Dirichlet(1/2), which for K = 2 is the law of sin²(πu/2), u uniform; "dirichlet" draws
        independently and uniformly for any K; "shared" gives all candidates of a prompt one uniform draw, as in ordinary
        best-of-N.
      gap: no target's first weight lies between its two numbers, see `leave_out`; None for the whole simplex.

    Returns:
      [B, N, K] float32; rows sum to 1.

    Raises:
      ValueError: `how` is none of these.
    """
    if how not in TARGETS:
        raise ValueError(f"meal.targets={how!r} is not one of {', '.join(TARGETS)}.")

    def draw_prompt(prompt_key):
        if how in ("stratified", "edges") and objectives == 2:
            first = (jnp.arange(candidates) + jax.random.uniform(prompt_key, (candidates,))) / candidates
            if how == "edges":
                first = jnp.sin(jnp.pi / 2 * first) ** 2
            return jnp.stack([first, 1.0 - first], axis=-1)
        rows = 1 if how == "shared" else candidates
        concentration = 0.5 if how == "edges" else 1.0
        w = jax.random.dirichlet(prompt_key, jnp.full(objectives, concentration), (rows,))
        return jnp.broadcast_to(w, (candidates, objectives))

    w = jax.vmap(draw_prompt)(jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_id))
    return w if gap is None else leave_out(w, gap)


def leave_out(w: jax.Array, gap: tuple[float, float]) -> jax.Array:
    """Preferences [..., K] moved so that no first weight lies strictly between the two numbers of `gap`.

    The first weight is shrunk to what the gap leaves of [0, 1] and, from its lower end on, moved past it; the other weights
    share what is left in their proportions. Of two objectives, what was uniform is uniform on the rest. Of more it is not: a
    uniform preference's first weight is more often small than large, and shrinking keeps that.
    """
    low, high = gap
    shrunk = w[..., :1] * (1 - (high - low))
    first = jnp.where(shrunk < low, shrunk, shrunk + (high - low))
    return jnp.concatenate([first, w[..., 1:] * (1 - first) / jnp.maximum(1 - w[..., :1], TINY)], axis=-1)


def by_prompt(x: float | jax.Array, axes: int) -> float | jax.Array:
    """A number, or one per prompt [B] with as many more axes of size 1 as arrays [B, …] need."""
    return x if jnp.ndim(x) == 0 else jnp.reshape(x, (-1, *[1] * axes))


def log_accept(p: jax.Array, r: jax.Array, tau: float | jax.Array) -> jax.Array:
    """log P(n | p_n): each candidate's chance of being the one accepted from its prompt's pool, under its own preference.

    P(n | p) = softmax_j(p · r_j / τ)_n. τ → 0 accepts the best of N under p, τ → ∞ accepts all alike.

    Args:
      p: preferences [B, N, K].
      r: rewards [B, N, K].
      tau: τ > 0, in units of the (normalised) reward; a number, or one per prompt [B].

    Returns:
      [B, N].
    """
    scores = jnp.einsum("bnk,bjk->bnj", p, r) / by_prompt(tau, 2)
    return jnp.diagonal(jax.nn.log_softmax(scores, axis=-1), axis1=1, axis2=2)


def accept(key: jax.Array, p: jax.Array, r: jax.Array, tau: float | jax.Array, how: str) -> jax.Array:
    """Acceptance weights a [B, N] of candidates under preferences p.

    soft: a = P(n | p_n). sample: a draw of it, 0 or 1. top1: 1 where the candidate is its pool's best under p_n. The last
    two pass the derivative of P straight through, so that the weight-net can learn under them too.

    Args:
      key: typed key [B] per prompt, for "sample".
      p: [B, N, K].
      r: [B, N, K].
      tau: τ.
      how: "soft", "sample" or "top1".

    Returns:
      [B, N], in [0, 1].

    Raises:
      ValueError: `how` is none of these.
    """
    if how not in ACCEPT:
        raise ValueError(f"meal.accept={how!r} is not one of {', '.join(ACCEPT)}.")
    chance = jnp.exp(log_accept(p, r, tau))
    if how == "soft":
        return chance
    if how == "sample":
        hard = jax.vmap(jax.random.bernoulli)(key, chance)
    else:
        scores = jnp.einsum("bnk,bjk->bnj", p, r)
        hard = jnp.argmax(scores, axis=-1) == jnp.arange(r.shape[1])
    return chance + jax.lax.stop_gradient(hard.astype(chance.dtype) - chance)


def control(a: jax.Array, p: jax.Array, r: jax.Array, tau: float | jax.Array, how: str, baseline: str) -> jax.Array:
    """The control variate b [B, N] that acceptance weights a are measured against: the policy learns from a_n − b_n.

    On the policy's own samples the likelihood of a response has no gradient on average and much variance, so what every
    response has in common is noise. With c_nj = P(j | p_n), or under "top1" whether j is the best under p_n, so that
    Σ_j c_nj = 1,
        pool            b_n = mean_j c_nj = 1 / N
        leave_one_out   b_n = mean_{j ≠ n} c_nj = (1 − c_nn) / (N − 1)
        accepted        b_n = mean_j a_j, every candidate under its own preference
    A constant keeps the expected gradient. A softmax's other chances do depend on its own: leaving n out multiplies the
    expected gradient by N / (N − 1), and where a_n = c_nn ("soft" and "top1") it is just that factor on a_n − 1 / N.

    The first two are for preferences that do not depend on the response. An adapted preference does: p_n is where response n
    is accepted most readily, so that a_n is above 1 / N on average, and what is left of the mean makes every response likelier
    under its own preference. "accepted" is the mean of the adapted weights themselves, and takes that out. See docs/method.md.

    Args:
      a: as from `accept`.
      p, r, tau, how: as given to `accept`.
      baseline: one of BASELINE.

    Returns:
      [B, N].
    """
    count = a.shape[1]
    if baseline == "none":
        return jnp.zeros_like(a)
    if baseline == "pool":
        return jnp.full_like(a, 1 / count)
    if baseline == "accepted":
        return jnp.broadcast_to(jnp.mean(a, axis=1, keepdims=True), a.shape)
    if baseline != "leave_one_out":
        raise ValueError(f"config.meal.baseline={baseline!r} is not one of {', '.join(BASELINE)}.")
    return (1 - (jnp.exp(log_accept(p, r, tau)) if how == "sample" else a)) / (count - 1)


def share(a: jax.Array, b: jax.Array | float = 0.0) -> jax.Array:
    """What the policy learns from, (a − b) / Σ a: acceptance weights [B, N] by all that is accepted in these prompts.

    Where nothing is accepted the divisor is 1, so that the derivative in a is that of a itself.
    """
    total = jnp.sum(a)
    return (a - b) / jnp.where(total == 0, 1.0, jnp.maximum(total, 1e-6))


def choose_tau(w: jax.Array, r: jax.Array, accepted: float, iterations: int = 24) -> jax.Array:
    """τ of each prompt [B] at which exp H(P(· | w_n)), averaged over its targets, is the share `accepted` of N.

    exp of the entropy is the number of answers among which acceptance is spread evenly. It grows with τ from the number of
    best answers to N; found by bisection of log τ between 1e-3 and 1e3, whose ends stand for what is out of reach. It is a
    function of targets and rewards alone, so that no derivative passes through it.

    Args:
      w: targets [B, N, K].
      r: normalised rewards [B, N, K].
      accepted: in (0, 1).
      iterations: halvings of the interval; 24 leave log τ to 1e-6.
    """
    scores = jnp.einsum("bnk,bjk->bnj", w, r)
    low = jnp.full(w.shape[0], jnp.log(1e-3), scores.dtype)

    def narrower(_, ends):
        low, high = ends
        middle = (low + high) / 2
        log_p = jax.nn.log_softmax(scores / by_prompt(jnp.exp(middle), 2), axis=-1)
        effective = jnp.mean(jnp.exp(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1)), axis=-1)
        above = effective > accepted * w.shape[1]
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, iterations, narrower, (low, -low))
    return jax.lax.stop_gradient(jnp.exp((low + high) / 2))


def adapt(
    w_hat: jax.Array, r: jax.Array, lam: float | jax.Array, tau: float | jax.Array, iterations: int = 12
) -> jax.Array:
    """The preference that each response embodies, found near the one it was asked for (responses → preferences).

        p_n = argmax_{p ∈ Δ}  λ log P(n | p) − KL(p ‖ ŵ_n)

    The problem is concave. With u = log p up to a constant, its solution solves
        G(u) = u − log ŵ_n − (λ/τ)(r_n − Σ_j P(j | p) r_j) = 0,   p = softmax(u),
    by Newton steps, each shortened until the objective does not fall, so that p is never worse than ŵ (plain damped
    iteration needs about 1 + λ/τ² times a variance of rewards in steps, which is slow where τ is small). λ = 0 gives p = ŵ.

    The derivative with respect to ŵ is the exact one of the implicit function, whatever the number of iterations: the
    iterations are cut from it, and one last Newton step with a constant Jacobian carries it.

    Args:
      w_hat: ŵ [B, N, K].
      r: normalised rewards [B, N, K]; no derivative is taken in them.
      lam: λ >= 0; a number, or one per prompt [B].
      tau: τ > 0; likewise.
      iterations: Newton steps, fixed so that the shape of the computation is.

    Returns:
      p [B, N, K].
    """
    if jnp.ndim(lam) == 0 and lam == 0:
        return w_hat
    pull, spread, weight = by_prompt(lam / tau, 2), by_prompt(tau, 2), by_prompt(lam, 1)
    slope = by_prompt(lam / tau**2, 3)
    r = jax.lax.stop_gradient(r)
    log_w = jnp.log(w_hat + TINY)
    eye = jnp.eye(r.shape[-1], dtype=r.dtype)
    shrink = 0.5 ** jnp.array([*range(11), jnp.inf], r.dtype)  # [A] step lengths to try, longest first; the last stays

    def pool(u):  # P(j | p_n) [B, N, J] and the mean reward under it [B, N, K]
        chance = jax.nn.softmax(jnp.einsum("bnk,bjk->bnj", jax.nn.softmax(u), r) / spread, axis=-1)
        return chance, jnp.einsum("bnj,bjk->bnk", chance, r)

    def residual(u, log_w):  # G [B, N, K]
        return u - log_w - pull * (r - pool(u)[1])

    def newton(u, g):
        """(∂G/∂u)⁻¹ g, where ∂G/∂u = I + C S Sᵀ with C = (λ/τ²) Cov_P(r) and S Sᵀ = diag p − p pᵀ = ∂p/∂u.

        Solved as g − C S (I + Sᵀ C S)⁻¹ Sᵀ g (push-through), whose inverse is of a symmetric positive definite matrix.
        """
        chance, mean = pool(u)
        away = r[:, None] - mean[:, :, None]  # [B, N, J, K]
        c = slope * jnp.einsum("bnj,bnjk,bnjl->bnkl", chance, away, away)
        root = jnp.sqrt(jax.nn.softmax(u))
        s = root[..., :, None] * (eye - root[..., :, None] * root[..., None, :])
        cs = c @ s
        inner = solve(eye + jnp.swapaxes(s, -1, -2) @ cs, jnp.einsum("bnkl,bnk->bnl", s, g))
        return g - jnp.einsum("bnkl,bnl->bnk", cs, inner)

    def objective(u, log_w):  # [B, N]
        log_p = jax.nn.log_softmax(u)
        p = jnp.exp(log_p)
        return weight * log_accept(p, r, tau) - jnp.sum(p * (log_p - log_w), axis=-1)

    def body(_, u):
        tried = u - shrink[:, None, None, None] * newton(u, residual(u, frozen))  # [A, B, N, K]
        value, before = jax.vmap(objective, (0, None))(tried, frozen), objective(u, frozen)
        slack = 1e-6 * (1.0 + jnp.abs(before))  # float32 cannot tell smaller falls from rounding
        best = jnp.argmax(value >= before - slack, axis=0)  # the longest step that does not fall
        return jnp.take_along_axis(tried, best[None, ..., None], axis=0)[0]

    frozen = jax.lax.stop_gradient(log_w)
    u = jax.lax.stop_gradient(jax.lax.fori_loop(0, iterations, body, frozen))
    # G's derivative in u is newton's, so with that held constant this step has exactly ∂u/∂ŵ = (∂G/∂u)⁻¹ ∂log ŵ/∂ŵ. Its
    # value is left out: not shortened, where the steps before have not arrived it may go past the maximum.
    last = newton(u, residual(u, log_w))
    return jax.nn.softmax(u - (last - jax.lax.stop_gradient(last)))


def solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """matrix⁻¹ vector for symmetric positive definite [..., K, K] and [..., K], by elimination without pivots.

    K is a handful: unrolled arithmetic compiles faster than a library call for each use, and shards as it is.
    """
    rows = jnp.concatenate([matrix, vector[..., None]], axis=-1)
    for k in range(matrix.shape[-1]):
        pivot = rows[..., k, :] / rows[..., k, k, None]
        rows = (rows - rows[..., :, k, None] * pivot[..., None, :]).at[..., k, :].set(pivot)
    return rows[..., -1]


def kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(p ‖ q) [...] of points [..., K] of the simplex."""
    return jnp.sum(p * (jnp.log(p + TINY) - jnp.log(q + TINY)), axis=-1)
