"""Preference mathematics against limits, brute force and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal import preference
from meal_jax.pareto.front import grid

adapt = jax.jit(preference.adapt, static_argnames=("lam", "tau", "iterations"))
log_accept = jax.jit(preference.log_accept)
draw_targets = jax.jit(preference.draw_targets, static_argnames=("candidates", "objectives", "how", "gap"))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def pools(k, candidates=5, prompts=3, seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    r = jax.random.normal(a, (prompts, candidates, k), jnp.float64)
    w = jax.random.dirichlet(b, jnp.ones(k), (prompts, candidates), jnp.float64)
    return w, r


def chance_naive(p, r, tau):
    """P(n | p) of one pool by a loop, for each p of [..., K]."""
    weights = np.stack([np.exp(p @ r_j / tau) for r_j in r], -1)
    return weights / weights.sum(-1, keepdims=True)


def objective_naive(p, w_hat, r, n, lam, tau):
    divergence = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / w_hat), 0).sum(-1)
    return lam * np.log(chance_naive(p, r, tau)[..., n]) - divergence


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("lam", "tau"), [(1.0, 1.0), (0.3, 0.1), (1.0, 0.1), (0.05, 2.0)])
def test_adapt_maximises_its_objective_on_a_grid_of_the_simplex(k, lam, tau):
    w, r = pools(k)
    p = np.asarray(adapt(w, r, lam, tau))
    lattice = grid(k, 2000 if k == 2 else 120)
    for b in range(w.shape[0]):
        for n in range(w.shape[1]):
            args = (np.asarray(w[b, n]), np.asarray(r[b]), n, lam, tau)
            values = objective_naive(lattice, *args)
            actual = objective_naive(p[b, n], *args)
            assert actual >= values.max() - 1e-12
            # The objective is strongly concave (the KL's modulus is at least 1 in the 1-norm): value bounds distance.
            assert np.abs(p[b, n] - lattice[values.argmax()]).sum() <= 2.0 / (2000 if k == 2 else 120) * k


@pytest.mark.parametrize("k", [2, 3, 5])
def test_adapt_solves_its_fixed_point(k):
    w, r = pools(k, candidates=6)
    lam, tau = 0.7, 0.3
    p = adapt(w, r, lam, tau)
    chance = jax.nn.softmax(jnp.einsum("bnk,bjk->bnj", p, r) / tau)
    right = w * jnp.exp((lam / tau) * (r - jnp.einsum("bnj,bjk->bnk", chance, r)))
    np.testing.assert_allclose(p, right / right.sum(-1, keepdims=True), atol=1e-10)


@pytest.mark.parametrize(("lam", "tau"), [(100.0, 0.01), (1.0, 1e-3), (10.0, 10.0)])
def test_adapt_stays_on_the_simplex_at_extremes_in_float32(lam, tau):
    w, r = pools(3, candidates=16)
    w = w.at[0, 0].set(jnp.array([1.0, 0.0, 0.0]))
    p = adapt(w.astype(jnp.float32), 5 * r.astype(jnp.float32), lam, tau)
    assert p.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(p))) and bool(jnp.all(p >= 0))
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("lam", "tau"), [(0.1, 0.01), (1.0, 0.01), (1e-3, 1e-3), (1.0, 0.03)])
def test_adapt_is_never_worse_than_the_proposal_however_far_the_steps_got(lam, tau):
    w, r = pools(3, candidates=16, prompts=400)
    p = np.asarray(adapt(w.astype(jnp.float32), r.astype(jnp.float32), lam, tau), float)

    def objective(p):
        p = jnp.asarray(p / p.sum(-1, keepdims=True))
        return lam * log_accept(p, r, tau) - jnp.sum(jnp.where(p > 0, p * jnp.log(p / w), 0.0), -1)

    before = objective(w)
    assert float(jnp.max((before - objective(p)) / (1 + jnp.abs(before)))) < 1e-4


def test_adapt_float32_agrees_with_float64():
    w, r = pools(2, candidates=8)
    for lam, tau in [(0.1, 0.1), (1.0, 0.2)]:
        low = adapt(w.astype(jnp.float32), r.astype(jnp.float32), lam, tau)
        np.testing.assert_allclose(low, adapt(w, r, lam, tau), atol=2e-4)


def test_adapt_moves_towards_what_the_response_is_good_at():
    r = jnp.array([[[2.0, 0.0], [0.0, 2.0]]])
    w = jnp.full((1, 2, 2), 0.5)
    p = adapt(w, r, 0.5, 1.0)
    assert p[0, 0, 0] > 0.6 and p[0, 1, 1] > 0.6
    stronger = adapt(w, r, 1.0, 1.0)
    assert stronger[0, 0, 0] > p[0, 0, 0]


def test_adapt_with_no_pull_returns_the_proposal_to_the_bit():
    w, r = pools(3)
    assert preference.adapt(w, r, 0.0, 0.5) is w


@pytest.mark.parametrize("k", [2, 3])
def test_derivative_of_adapt_is_that_of_the_implicit_function(k):
    w, r = pools(k, candidates=4, prompts=1)
    logits = jnp.log(w)
    direction = jax.random.normal(jax.random.key(3), logits.shape)

    def f(z):
        return adapt(jax.nn.softmax(z), r, 0.4, 0.3, iterations=30)

    _, actual = jax.jvp(f, (logits,), (direction,))
    step = 1e-5
    numeric = (f(logits + step * direction) - f(logits - step * direction)) / (2 * step)
    np.testing.assert_allclose(actual, numeric, rtol=1e-6, atol=1e-9)
    assert np.abs(actual).max() > 1e-2


def test_chance_of_acceptance_has_its_limits():
    w, r = pools(3, candidates=7)
    utility = np.einsum("bnk,bjk->bnj", w, r)
    best = utility.argmax(-1) == np.arange(7)
    np.testing.assert_allclose(np.exp(log_accept(w, r, 1e-5)), best, atol=1e-12)
    np.testing.assert_allclose(np.exp(log_accept(w, r, 1e8)), 1 / 7, atol=1e-7)
    key = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(preference.accept(key, w, r, 1.0, "top1"), best)


def test_chance_of_acceptance_against_a_loop():
    w, r = pools(2)
    for b in range(3):
        for n in range(5):
            expected = chance_naive(np.asarray(w[b, n]), np.asarray(r[b]), 0.4)[n]
            np.testing.assert_allclose(np.exp(log_accept(w, r, 0.4))[b, n], expected, rtol=1e-12)


def test_sampled_acceptance_has_the_frequency_of_the_soft_one_and_its_derivative():
    w, r = pools(2, candidates=3, prompts=1)
    soft = preference.accept(None, w, r, 0.5, "soft")
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.vmap(lambda k: preference.accept(k[None], w, r, 0.5, "sample"))(keys)
    assert set(np.unique(np.round(draws, 9))) == {0.0, 1.0}
    error = np.sqrt(soft * (1 - soft) / 4000)
    assert np.all(np.abs(draws.mean(0) - soft) < 4 * error + 1e-9)

    def grad(how):
        return jax.grad(lambda p: preference.accept(keys[:1], p, r, 0.5, how).sum())(w)

    np.testing.assert_allclose(grad("sample"), grad("soft"))
    assert np.abs(grad("soft")).max() > 1e-3


def test_a_dominated_response_is_beaten_under_every_preference():
    r = jnp.array([[[1.0, 1.0], [0.5, 0.2]]])
    for p in grid(2):
        chance = np.exp(log_accept(jnp.broadcast_to(jnp.asarray(p), (1, 2, 2)), r, 0.1))
        assert chance[0, 1] < 0.5 < chance[0, 0]


@pytest.mark.parametrize("how", ["stratified", "edges", "dirichlet", "shared"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_targets_lie_on_the_simplex_and_follow_prompt_and_key_alone(how, k):
    key, ids = jax.random.key(0), jnp.array([3, 9, 4])
    w = draw_targets(key, ids, 8, k, how)
    assert w.shape == (3, 8, k) and bool(jnp.all(w >= 0))
    np.testing.assert_allclose(w.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(draw_targets(key, ids[::-1], 8, k, how), w[::-1])
    if k > 1:
        assert np.abs(w[0] - w[1]).max() > 1e-3
        assert np.abs(w - draw_targets(jax.random.key(1), ids, 8, k, how)).max() > 1e-3
        assert (np.ptp(w, axis=1).max() < 1e-12) == (how == "shared")


def test_stratified_targets_put_one_in_each_part_of_the_interval():
    w = draw_targets(jax.random.key(0), jnp.arange(50), 8, 2, "stratified")
    np.testing.assert_array_equal(np.floor(w[..., 0] * 8), np.tile(np.arange(8), (50, 1)))


def test_targets_at_the_edges_have_the_density_of_dirichlet_one_half():
    w = draw_targets(jax.random.key(0), jnp.arange(500), 8, 2, "edges")
    parts = np.floor(2 / np.pi * np.arcsin(np.sqrt(w[..., 0])) * 8 * (1 - 1e-6))  # the law's own distribution function
    np.testing.assert_array_equal(parts, np.tile(np.arange(8), (500, 1)))
    drawn = np.asarray(draw_targets(jax.random.key(0), jnp.arange(2000), 8, 3, "edges")).reshape(-1, 3)
    np.testing.assert_allclose(drawn.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(drawn.var(0), 2 / 9 / 2.5, rtol=0.03)  # Dirichlet: m (1 − m) / (1 + Σ α)


@pytest.mark.parametrize("k", [2, 3])
def test_no_target_lies_in_the_gap_and_the_rest_is_as_likely_as_before(k):
    gap = (0.3, 0.7)
    ids = jnp.arange(4000)
    whole = np.asarray(draw_targets(jax.random.key(0), ids, 4, k, "dirichlet"))
    w = np.asarray(draw_targets(jax.random.key(0), ids, 4, k, "dirichlet", gap))
    np.testing.assert_allclose(w.sum(-1), 1.0, rtol=1e-5)
    first = w[..., 0]
    assert not np.any((first > gap[0] + 1e-6) & (first < gap[1] - 1e-6))
    assert np.mean(first < 0.5) == pytest.approx(np.mean(whole[..., 0] < 0.5), abs=0.02)
    if k == 2:
        for low, high in ((0, 0.15), (0.15, 0.3), (0.7, 0.85), (0.85, 1)):
            assert np.mean((first >= low) & (first < high)) == pytest.approx(0.25, abs=0.02)
    else:
        share, before = (x[..., 1] / (x[..., 1] + x[..., 2]) for x in (w, whole))
        np.testing.assert_allclose(share, before, rtol=1e-4)


def test_unknown_choices_are_named():
    w, r = pools(2)
    with pytest.raises(ValueError, match="accept='best'.*soft, sample, top1"):
        preference.accept(None, w, r, 1.0, "best")
    with pytest.raises(ValueError, match="targets='sobol'"):
        preference.draw_targets(jax.random.key(0), jnp.arange(2), 4, 2, "sobol")
    with pytest.raises(ValueError, match="baseline='pol' is not one of none, pool"):
        preference.control(w[..., 0], w, r, 1.0, "soft", "pol")


def policy(theta, w):
    """log π(y | w) [..., M] of M one-token responses, for preferences w [..., 2]."""
    table = jnp.array([[2.0, -1.0], [-1.0, 2.0], [0.5, 0.5]])
    return jax.nn.log_softmax(theta + w @ table.T)


REWARDS = np.array([[1.0, 0.0], [0.0, 1.2], [0.7, 0.6]])
THETA = np.array([0.3, -0.2, 0.1])


def expected(baseline, how, tau=0.7):
    """Mean [M] and total variance of Σ_n (a_n − b_n) ∇log π(y_n | w_n), over all pools of 3 draws from the policy."""
    w = jnp.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    pools = jnp.array(list(np.ndindex(3, 3, 3)))  # [27, N]
    words = jnp.broadcast_to(w, (27, 3, 2))
    r = jnp.asarray(REWARDS)[pools]
    key = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(27))
    a = preference.accept(key, words, r, tau, "soft" if how == "sample" else how)  # of a draw its mean
    b = preference.control(a, words, r, tau, how, baseline)
    scores = jax.jacobian(policy)(jnp.asarray(THETA), w)  # [N, M, θ]: ∇log π of each response
    gradient = jnp.sum((a - b)[..., None] * scores[jnp.arange(3), pools], axis=1)
    chance = jnp.exp(jnp.sum(policy(jnp.asarray(THETA), w)[jnp.arange(3), pools], axis=1))
    mean = chance @ gradient
    return mean, chance @ jnp.sum((gradient - mean) ** 2, axis=-1)


@pytest.mark.parametrize("how", preference.ACCEPT)
def test_control_variates_keep_the_expected_gradient_and_take_variance(how):
    """A policy over 3 responses, 3 candidates with a preference each: all 27 pools, each with its probability."""
    mean, variance = expected("none", how)
    assert np.abs(mean).max() > 0.03
    centred, less = expected("pool", how)
    np.testing.assert_allclose(centred, mean, rtol=1e-12, atol=1e-15)
    without, lesser = expected("leave_one_out", how)
    np.testing.assert_allclose(without, mean * 3 / 2, rtol=1e-12, atol=1e-15)
    assert less < 0.6 * variance
    np.testing.assert_allclose(lesser, less * (3 / 2) ** 2, rtol=1e-12)  # of a softmax they are one up to the factor


def test_adapted_acceptance_is_above_chance_and_its_own_mean_centres_it():
    """Equal responses under equal preferences have nothing to teach; adapted, 1/N leaves a pull to each response."""
    w, r = pools(2)
    p = adapt(w, r, 0.5, 0.7)
    a = jnp.exp(log_accept(p, r, 0.7))
    pool, accepted = (preference.control(a, p, r, 0.7, "soft", name) for name in ("pool", "accepted"))
    assert float(jnp.mean(a - pool)) > 0.02  # selected: above 1/N on average
    np.testing.assert_allclose(jnp.sum(a - accepted, axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(accepted[:, 0], [np.mean(row) for row in np.asarray(a)], rtol=1e-12)


def test_the_control_variate_of_a_draw_is_the_chance_of_the_others():
    w, r = pools(2)
    key = jax.random.split(jax.random.key(0), 3)
    a = preference.accept(key, w, r, 0.7, "sample")
    b = preference.control(a, w, r, 0.7, "sample", "leave_one_out")
    for index, n in np.ndindex(3, 5):
        np.testing.assert_allclose(
            b[index, n], np.delete(chance_naive(w[index, n], r[index], 0.7), n).mean(), rtol=1e-12
        )
    np.testing.assert_array_equal(preference.control(a, w, r, 0.7, "sample", "pool"), np.full((3, 5), 0.2))


def test_shares_are_of_what_is_accepted_and_finite_where_nothing_is():
    a = jnp.array([[0.5, 0.25], [0.25, 0.0]])
    np.testing.assert_allclose(preference.share(a, 0.5), (a - 0.5) / 1.0)
    np.testing.assert_allclose(preference.share(3 * a), a)
    nothing = jnp.zeros((2, 2))
    np.testing.assert_array_equal(preference.share(nothing), nothing)
    np.testing.assert_array_equal(jax.jacobian(preference.share)(nothing).reshape(4, 4), np.eye(4))


@pytest.mark.parametrize("accepted", [0.3, 0.5, 0.9])
def test_tau_of_a_prompt_spreads_acceptance_over_the_share_asked_for(accepted):
    w, r = pools(3, candidates=6)
    r = r * jnp.array([0.1, 1.0, 10.0])[:, None, None]
    tau = preference.choose_tau(w, r, accepted)
    for b in range(3):
        chances = [chance_naive(w[b, n], r[b], tau[b]) for n in range(6)]
        np.testing.assert_allclose(np.mean([np.exp(-p @ np.log(p + 1e-300)) for p in chances]), 6 * accepted, rtol=1e-4)
    np.testing.assert_allclose(preference.choose_tau(w, 2 * r, accepted), 2 * tau, rtol=1e-5)
    alike = preference.choose_tau(w, jnp.ones_like(r), accepted)  # out of reach: all are accepted alike
    np.testing.assert_allclose(jnp.exp(log_accept(w, jnp.ones_like(r), alike)), 1 / 6)


def test_a_tau_of_each_prompt_is_that_tau_in_each_prompt():
    w, r = pools(3)
    tau = jnp.array([0.2, 0.5, 2.0])
    p = preference.adapt(w, r, 0.7 * tau, tau)
    chance = log_accept(w, r, tau)
    for b in range(3):
        first = slice(b, b + 1)
        np.testing.assert_allclose(p[first], adapt(w[first], r[first], 0.7 * float(tau[b]), float(tau[b])), rtol=1e-9)
        np.testing.assert_allclose(chance[first], log_accept(w[first], r[first], float(tau[b])), rtol=1e-12)
