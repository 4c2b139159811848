"""The hypergradient against finite differences and unrolling; the meta-objective against exact expectations."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meal_jax.meal import bilevel, preference, subset
from meal_jax.meal.clip import clip_by_global_norm


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05, eps_root=1e-12),
    "adam_clipped": optax.chain(clip_by_global_norm(0.05), optax.adamw(0.05, eps_root=1e-12, weight_decay=0.1)),
}


def problem(seed=0):
    """A smooth pair of losses in which φ acts on the base loss in a way that θ sees, and on the meta loss directly."""
    keys = jax.random.split(jax.random.key(seed), 5)
    theta = {"a": jax.random.normal(keys[0], (4, 3)), "b": jax.random.normal(keys[1], (3,))}
    phi = {"u": jax.random.normal(keys[2], (4,)), "v": jax.random.normal(keys[3], ())}
    x = jax.random.normal(keys[4], (6, 4))

    def base(theta, phi):
        h = jnp.tanh((x * jax.nn.softplus(phi["u"])) @ theta["a"] + theta["b"] * phi["v"])
        return jnp.mean(h**2) + jnp.mean(jnp.sin(h)) * phi["v"]

    def meta(theta, phi):
        return jnp.sum(jnp.cos(theta["a"]) ** 2) + theta["b"] @ theta["b"] + jnp.sum(phi["u"] ** 3) * 0.1

    return base, meta, theta, phi


def warm(tx, base, theta, phi, steps=3):
    """An optimizer state in mid-run: moments and counts are not zero."""
    state = tx.init(theta)

    @jax.jit
    def descend(theta, state):
        updates, state = tx.update(jax.grad(base)(theta, phi), state, theta)
        return optax.apply_updates(theta, updates), state

    for _ in range(steps):
        theta, state = descend(theta, state)
    return theta, state


def hypergradient(levels, theta, phi, tx, state, through_update=True):
    """`bilevel.hypergradient` in one program."""

    def found(theta, phi, state):
        return bilevel.hypergradient(*levels, theta, phi, tx, state, through_update=through_update)

    return jax.jit(found)(theta, phi, state)


def levels(base, meta):
    """Both losses as levels that read φ as it is."""

    def whole(loss):
        return bilevel.Level(lambda phi: phi, lambda theta, x, _: loss(theta, x))

    return whole(base), whole(meta)


def unrolled(base, meta, tx, theta, state):
    def outer(phi):
        updates, _ = tx.update(jax.grad(base)(theta, phi), state, theta)
        return meta(optax.apply_updates(theta, updates), phi)

    return jax.jit(outer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first", [True, False], ids=["first_step", "mid_run"])
def test_exact_hypergradient_equals_unrolling_and_finite_differences(name, first):
    base, meta, theta, phi = problem()
    tx = OPTIMIZERS[name]
    theta, state = (theta, tx.init(theta)) if first else warm(tx, base, theta, phi)
    actual = hypergradient(levels(base, meta), theta, phi, tx, state)
    outer = unrolled(base, meta, tx, theta, state)

    naive = jax.grad(outer)(phi)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), actual.grad, naive)

    # Adam's very first step is a sign, whose derivative is of the size of its epsilons: too sharp for a difference.
    if not (first and "adam" in name):
        step, flat = 1e-6, jax.flatten_util.ravel_pytree(phi)
        for i in range(flat[0].size):
            e = step * jnp.eye(flat[0].size)[i]
            numeric = (outer(flat[1](flat[0] + e)) - outer(flat[1](flat[0] - e))) / (2 * step)
            exact = jax.flatten_util.ravel_pytree(actual.grad)[0][i]
            np.testing.assert_allclose(exact, numeric, rtol=2e-6, atol=1e-8)

    # The part through the update is a real part of it, or this test would pass without it.
    direct = hypergradient(levels(base, meta), theta, phi, tx, state, through_update=False).grad
    distance = jax.tree.map(lambda a, b: np.abs(a - b).max(), actual.grad, direct)
    assert max(jax.tree.leaves(distance)) > (1e-12 if first and "adam" in name else 1e-4)


def levels_of_rows():
    """Losses whose normalisers are of all six rows, with φ in every row and in the normaliser.

    Returns:
      The levels by pieces, both losses as functions of (θ, φ), θ, φ.
    """
    rng = np.random.default_rng(0)
    rows = {"x": jnp.asarray(rng.normal(size=(6, 4))), "t": jnp.asarray(rng.normal(size=6))}
    theta, phi = {"w": jnp.asarray(rng.normal(size=4))}, {"u": jnp.asarray(rng.normal(size=4))}

    def read(phi):
        a = jax.nn.sigmoid(rows["x"] @ phi["u"])
        return {"share": a / jnp.sum(a), "shift": jnp.sin(rows["x"] * phi["u"])}

    def loss(theta, x, rows):
        return jnp.sum(x["share"] * (jnp.tanh((rows["x"] + x["shift"]) @ theta["w"]) - rows["t"]) ** 2)

    def judge(theta, x, rows):
        return jnp.sum(jnp.cos(rows["x"] @ theta["w"]) * x["share"] + rows["t"] * jnp.sum(x["shift"], axis=-1)) / 6

    def levels(pieces):
        return bilevel.Level(read, loss, rows, pieces), bilevel.Level(read, judge, rows, pieces)

    def whole(part):
        return lambda theta, phi: part(theta, read(phi), rows)

    return levels, whole(loss), whole(judge), theta, phi


@pytest.mark.parametrize("pieces", [2, 3])
def test_prompts_a_part_at_a_time_change_nothing(pieces):
    """Against one pass, and against unrolling."""
    (levels, loss, judge, theta, phi), tx = levels_of_rows(), optax.adam(0.05, eps_root=1e-12)
    whole = hypergradient(levels(1), theta, phi, tx, tx.init(theta))
    parts = hypergradient(levels(pieces), theta, phi, tx, tx.init(theta))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), parts, whole)
    plain = unrolled(loss, judge, tx, theta, tx.init(theta))
    np.testing.assert_allclose(parts.grad["u"], jax.grad(plain)(phi)["u"], rtol=1e-9)
    assert np.abs(parts.grad["u"]).min() > 1e-6


def choices(prompts, taken):
    """Every Subset that `subset.draw` can give, stacked."""
    groups = math.gcd(prompts, taken)
    each = [
        (ways, tuple(i for i in range(prompts // groups) if i not in ways))
        for ways in itertools.combinations(range(prompts // groups), taken // groups)
    ]
    drawn = [tuple(zip(*group, strict=True)) for group in itertools.product(each, repeat=groups)]
    return subset.Subset(*(jnp.array([draw[side] for draw in drawn], jnp.int32) for side in (0, 1)))


@pytest.mark.parametrize(("taken", "pieces"), [(2, 1), (3, 1), (4, 1), (2, 3), (4, 3)])
def test_the_mean_over_all_parts_of_the_prompts_is_the_exact_hypergradient(taken, pieces):
    """Clipped Adam in mid-run; φ in every row and in the normaliser of the base loss; all pairs of draws, of both halves."""
    levels, loss, _, theta, phi = levels_of_rows()
    levels = levels(pieces)
    tx = optax.chain(clip_by_global_norm(0.05), optax.adam(0.05, eps_root=1e-12))
    theta, state = warm(tx, loss, theta, phi)
    exact = hypergradient(levels, theta, phi, tx, state)
    drawn = choices(6, taken)
    pairs = [i.ravel() for i in np.indices(2 * (len(drawn.taken),))]

    def estimate(base, meta):
        return bilevel.hypergradient(*levels, theta, phi, tx, state, drawn=(base, meta))

    each = jax.jit(jax.vmap(estimate))(*(subset.Subset(drawn.taken[i], drawn.left[i]) for i in pairs))
    for name in ("grad", "meta"):
        mean = jax.tree.map(lambda x: x.mean(axis=0), getattr(each, name))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mean, getattr(exact, name))
    # What moves the policy is of all prompts in each of them.
    same = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(pairs[0]), *x.shape)), exact)
    for name in ("base", "virtual"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), getattr(each, name), getattr(same, name)
        )
    assert np.std(each.grad["u"], axis=0).min() > 1e-3 * np.abs(exact.grad["u"]).max()


@pytest.mark.parametrize("how", preference.ACCEPT)
@pytest.mark.parametrize("meta", bilevel.META)
@pytest.mark.parametrize("mode", bilevel.HYPERGRADIENT)
def test_where_the_gradient_is_exactly_zero_the_hypergradient_is_that_of_finite_differences(how, meta, mode):
    """Nothing accepted, or under "soft" with a baseline all alike: the clip and Adam are passed at a gradient of zero.

    A policy over 3 one-token responses that reads ŵ = softmax(log w + φ). Draws are passed straight through: finite
    differences are of the acceptance weights with the draw's jump held.
    """
    tau, rho = 0.5, 0.3
    table = jnp.array([[2.0, -1.0], [-1.0, 2.0], [0.5, 0.5]])
    rewards = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.4, 0.3]])
    w = {"base": jnp.array([[[0.2, 0.8], [0.8, 0.2]]]), "meta": jnp.array([[[0.3, 0.7], [0.6, 0.4]]])}
    y = {"base": jnp.array([[0, 1]]), "meta": jnp.array([[1, 2]])}  # under "top1" each is worse than the other
    r = {name: rewards[rows] for name, rows in y.items()}
    phi, theta = jnp.array([0.2, -0.1]), jnp.array([0.3, -0.2, 0.1])

    def propose(phi, name):
        return jax.nn.softmax(jnp.log(w[name]) + phi)

    if how == "soft":  # equally good at φ, and no longer beside it
        w["base"] = jnp.full((1, 2, 2), 0.5)
        first, second = propose(phi, "base")[0, 0]
        r["base"] = jnp.array([[[second, 0.0], [0.0, first]]])
    baseline, mask = "pool" if how == "soft" else "none", jnp.ones((1, 2, 1), bool)

    @jax.jit
    def drawn(key):
        return preference.accept(key[None], propose(phi, "base"), r["base"], tau, "sample")

    key = next(key for key in map(jax.random.key, range(99)) if float(jnp.sum(drawn(key))) == 0)
    behaviour = jnp.full((1, 2, 1), -1.0)

    def logp(theta, p, name):
        return jnp.take_along_axis(jax.nn.log_softmax(theta + p @ table.T), y[name][..., None], -1)

    def weigh(p):
        a = preference.accept(key[None], p, r["base"], tau, how)
        return a, preference.share(a, preference.control(a, p, r["base"], tau, how, baseline))

    def held(p):  # the acceptance weights whose derivative is passed straight through, as a function

        def chance(p):
            return jnp.exp(preference.log_accept(p, r["base"], tau))

        start = propose(phi, "base")
        a = chance(p) + (weigh(start)[0] - chance(start) if how != "soft" else 0.0)
        total = jnp.sum(a) if how == "soft" else 1.0  # nothing is accepted: divided by 1
        return (a - preference.control(a, p, r["base"], tau, how, baseline)) / total

    def base(theta, x, _):
        return bilevel.base_loss(x["share"], logp(theta, x["p"], "base"), mask, over=(1.0, 2))

    def judge(theta, w_hat, _):
        return bilevel.meta_loss(
            w["meta"], w_hat, r["meta"], logp(theta, w_hat, "meta"), behaviour, mask, kind=meta, tau=tau, rho=rho,
            ratio_clip=0.9,
        )  # fmt: skip

    still = propose(phi, "base")

    def read(phi, share=lambda p: weigh(p)[1]):
        p = propose(phi, "base")
        return {"share": share(p), "p": still if mode == "first_order" else p}

    tx = optax.chain(clip_by_global_norm(1.0), optax.adamw(0.05, eps_root=1e-4))
    # In mid-run: at Adam's very first step the derivative is of the size of its epsilons, too sharp for a difference.
    _, state = tx.update(jnp.array([0.3, -0.4, 0.2]), tx.init(theta), theta)
    assert np.all(jax.jit(jax.grad(lambda t: base(t, read(phi), ())))(theta) == 0)
    if how != "soft":
        assert float(jnp.sum(weigh(still)[0])) == 0
    levels = bilevel.Level(read, base), bilevel.Level(lambda phi: propose(phi, "meta"), judge)
    actual = hypergradient(levels, theta, phi, tx, state, through_update=mode != "none").grad

    @jax.jit
    def outer(net):
        x = read(phi if mode == "none" else net, held)
        updates, _ = tx.update(jax.grad(lambda t: base(t, x, ()))(theta), state, theta)
        return judge(optax.apply_updates(theta, updates), propose(net, "meta"), ())

    step = 1e-5
    for i in range(2):
        e = step * jnp.eye(2)[i]
        np.testing.assert_allclose(actual[i], (outer(phi + e) - outer(phi - e)) / (2 * step), rtol=1e-6, atol=1e-8)
    if mode != "none":
        direct = hypergradient(levels, theta, phi, tx, state, through_update=False).grad
        assert float(jnp.abs(actual - direct).max()) > 1e-4


def test_parts_are_put_together_again():
    x = jnp.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(bilevel.split_chunks(x, 3)[1], x[jnp.array([1, 4])])
    np.testing.assert_array_equal(bilevel.join_chunks(bilevel.split_chunks(x, 3)), x)


def test_virtual_policy_is_one_step_of_the_optimizer():
    base, meta, theta, phi = problem()
    tx = OPTIMIZERS["adam"]
    h = bilevel.hypergradient(*levels(base, meta), theta, phi, tx, tx.init(theta))
    updates, state = tx.update(jax.grad(base)(theta, phi), tx.init(theta), theta)
    jax.tree.map(np.testing.assert_array_equal, h.virtual, optax.apply_updates(theta, updates))
    jax.tree.map(np.testing.assert_array_equal, h.virtual_opt, state)
    assert h.base == base(theta, phi) and h.meta == meta(h.virtual, phi)


def test_base_loss_by_hand():
    logp = jnp.log(jnp.array([[[0.5, 0.25, 0.9], [0.1, 0.9, 0.9]]]))
    mask = jnp.array([[[True, True, False], [True, False, False]]])
    a = jnp.array([[0.75, 0.25]])
    kl = jnp.array([[[0.2, 0.4, 9.0], [0.6, 9.0, 9.0]]])
    expected = -(0.75 * (np.log(0.5) + np.log(0.25)) / 2 + 0.25 * np.log(0.1))
    np.testing.assert_allclose(bilevel.base_loss(a, logp, mask), expected, rtol=1e-12)
    with_kl = bilevel.base_loss(a, logp, mask, kl, beta=0.5)
    np.testing.assert_allclose(with_kl, expected + 0.5 * (0.2 + 0.4 + 0.6) / 3, rtol=1e-12)
    assert bilevel.base_loss(jnp.zeros_like(a), logp, mask) == 0  # nothing accepted: nothing learned, no NaN


def test_a_pool_that_serves_again_is_learned_from_by_ppos_clipped_ratios():
    before = jnp.log(jnp.array([[[0.5, 0.2], [0.4, 0.9]]]))
    mask = jnp.array([[[True, True], [True, False]]])
    a = jnp.array([[0.75, -0.25]])

    def loss(logp, **how):
        return bilevel.base_loss(a, logp, mask, over=(1.0, 3), **how)

    # At the policy that answered: the gradient of the first pass.
    again = jax.grad(lambda x: loss(x, before=before))(before)
    np.testing.assert_allclose(again, jax.grad(loss)(before), rtol=1e-12)
    assert float(jnp.abs(again[0, 1, 1])) == 0
    # Away from it: what is accepted counts up to 1 + clip, what is rejected down to 1 − clip, and otherwise in full.
    moved = before + jnp.log(jnp.array([[[1.5, 0.5], [0.5, 1.0]]]))
    expected = -(0.75 * (1.2 + 0.5) / 2 + -0.25 * 0.8 / 1)
    np.testing.assert_allclose(loss(moved, before=before, clip=0.2), expected, rtol=1e-12)
    np.testing.assert_allclose(
        loss(before + jnp.log(2.0), before=before, clip=0.2), -(0.75 * 1.2 + -0.25 * 2.0), rtol=1e-12
    )


def test_over_a_constant_length_equal_acceptance_moves_nothing_and_over_its_own_length_a_short_answer_gains():
    """A policy that ends (or not) at each of T places, enumerated: the expected gradient on its own samples."""
    length = 4
    place, row = jnp.arange(length), jnp.arange(length + 1)[:, None]  # row n ends at place n, the last is cut at T
    mask = place <= row

    def expected(length_norm):
        def loss(logit):
            logp = jnp.where(place == row, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)) * mask
            chance = jax.lax.stop_gradient(jnp.exp(jnp.sum(logp, axis=-1)))

            def first(x, m):
                return bilevel.base_loss(jnp.ones((1, 1)), x, m, length_norm=length_norm)

            return jnp.sum(chance * jax.vmap(first)(logp[:, None, None], mask[:, None, None]))

        return jax.grad(loss)(0.3)

    assert abs(expected("constant")) < 1e-12
    assert expected("response") < -0.05  # descent raises the chance to stop
    # It is E[∇log π(y) / |y|] = ∇E[1 / |y|], and so what a baseline of 1 / N takes away from each candidate's N-th part.

    def inverse_length(logit):
        logp = jnp.where(place == row, jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)) * mask
        return jnp.exp(jnp.sum(logp, axis=-1)) @ (1 / jnp.sum(mask, axis=-1))

    np.testing.assert_allclose(expected("response"), -jax.grad(inverse_length)(0.3), rtol=1e-12)


def test_advantage_leaves_the_candidate_out_of_its_baseline():
    w = jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    r = jnp.array([[[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]]])
    expected = [3 - (0 + 2) / 2, 1 - (0 + 2) / 2, 2 - (1.5 + 0.5) / 2]
    np.testing.assert_allclose(bilevel.advantage(w, r)[0], expected)
    pool = jax.random.normal(jax.random.key(0), (2, 5, 2))
    w = jax.random.dirichlet(jax.random.key(1), jnp.ones(2), (2, 5))
    u = jnp.einsum("bnk,bjk->bnj", w, pool)
    mean_over_all = jnp.diagonal(u, axis1=1, axis2=2) - u.mean(-1)
    np.testing.assert_allclose(bilevel.advantage(w, pool), mean_over_all * 5 / 4, rtol=1e-12)


def test_reinforce_meta_gradient_is_the_gradient_of_the_exact_expected_utility():
    """A policy over 4 one-token responses, conditioned linearly on ŵ: its expected utility can be summed exactly."""
    rewards = jnp.array([[2.0, 0.0], [0.0, 1.5], [1.0, 1.2], [-1.0, 0.3]])
    w = jnp.array([0.7, 0.3])
    table = jnp.array([[3.0, -3.0], [-3.0, 3.0], [0.0, 0.0], [0.0, 0.0]])

    def log_pi(theta, phi):  # [4]; ŵ = softmax(log w + φ)
        return jax.nn.log_softmax(theta + table @ jax.nn.softmax(jnp.log(w) + phi))

    theta, phi = jnp.array([-1.0, 1.0, 0.2, 0.0]), jnp.array([0.1, -0.1])
    exact = jax.grad(lambda t, f: -jnp.exp(log_pi(t, f)) @ (rewards @ w), argnums=(0, 1))(theta, phi)

    pools, candidates = 40_000, 3
    behaviour = log_pi(theta, phi)
    y = jax.random.categorical(jax.random.key(1), behaviour, shape=(pools, candidates))

    def estimate(t, f):
        return bilevel.meta_loss(
            jnp.broadcast_to(w, (pools, candidates, 2)), jnp.broadcast_to(w, (pools, candidates, 2)), rewards[y],
            log_pi(t, f)[y][..., None], behaviour[y][..., None], jnp.ones((pools, candidates, 1), bool),
            kind="utility", tau=1.0, rho=0.0, ratio_clip=0.2,
        )  # fmt: skip

    sampled = jax.grad(estimate, argnums=(0, 1))(theta, phi)
    for actual, truth in zip(sampled, exact, strict=True):
        # |A ∇log π| is below 5 here, so the standard error of a mean over 120 000 is below 0.015.
        np.testing.assert_allclose(actual, truth, atol=0.045)
        assert np.abs(truth).max() > 0.1


def test_meta_utility_is_clipped_like_ppo():
    w = jnp.full((1, 2, 1), 1.0)
    r = jnp.array([[[1.0], [-1.0]]])  # advantages 2 and −2
    args = dict(kind="utility", tau=1.0, rho=0.0, ratio_clip=0.2)
    mask = jnp.ones((1, 2, 1), bool)

    def value(log_ratio):
        logp = jnp.array(log_ratio)[None, :, None]
        return bilevel.meta_loss(w, w, r, logp, jnp.zeros((1, 2, 1)), mask, **args)

    np.testing.assert_allclose(value([np.log(3.0), 0.0]), -(1.2 * 2 - 2) / 2)  # a gain counts up to 1 + clip
    np.testing.assert_allclose(value([np.log(0.5), 0.0]), -(0.5 * 2 - 2) / 2)  # a loss of a good one counts in full
    np.testing.assert_allclose(value([0.0, np.log(3.0)]), -(2 - 3.0 * 2) / 2)  # so does a gain of a bad one


@pytest.mark.parametrize("kind", bilevel.META)
def test_meta_objective_judges_by_targets_so_cheating_does_not_pay(kind):
    """Objective 0 is easy: its reward is large whatever is asked. A net that proposes ŵ = e₀ would score high if it were
    its own judge. The user wants e₁."""
    w = jnp.broadcast_to(jnp.array([0.0, 1.0]), (1, 2, 2))
    honest, cheating = w, jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 2, 2))
    r = jnp.array([[[0.0, 1.0], [3.0, -1.0]]])  # candidate 0 serves the user, candidate 1 the easy objective
    behaviour, mask = jnp.full((1, 2, 1), np.log(0.5)), jnp.ones((1, 2, 1), bool)
    args = dict(kind=kind, tau=0.1, rho=0.0, ratio_clip=0.9)
    # Under honest proposals the policy answers with candidate 0, under cheating ones with candidate 1.
    honest_logp, cheating_logp = jnp.log(jnp.array([[[0.9], [0.1]]])), jnp.log(jnp.array([[[0.1], [0.9]]]))
    honest_loss = bilevel.meta_loss(w, honest, r, honest_logp, behaviour, mask, **args)
    cheating_loss = bilevel.meta_loss(w, cheating, r, cheating_logp, behaviour, mask, **args)
    assert honest_loss < cheating_loss - 0.5
    # The same numbers judged by the proposals themselves: cheating would win. This is what must not be computed.
    own_judge = bilevel.meta_loss(cheating, cheating, r, cheating_logp, behaviour, mask, **args)
    assert own_judge < honest_loss + 1e-9


def test_meta_objective_charges_for_leaving_the_target():
    w, w_hat = jnp.full((1, 2, 2), 0.5), jnp.broadcast_to(jnp.array([0.9, 0.1]), (1, 2, 2))
    zeros, mask = jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1), bool)
    args = dict(kind="utility", tau=1.0, ratio_clip=0.2)
    gap = bilevel.meta_loss(w, w_hat, zeros + w, zeros, zeros, mask, rho=2.0, **args)
    gap -= bilevel.meta_loss(w, w_hat, zeros + w, zeros, zeros, mask, rho=0.0, **args)
    np.testing.assert_allclose(gap, 2.0 * (0.9 * np.log(1.8) + 0.1 * np.log(0.2)), rtol=1e-9)


def test_unknown_meta_is_named():
    x, mask = jnp.zeros((1, 2, 1)), jnp.ones((1, 2, 1), bool)
    with pytest.raises(ValueError, match="meta='reward'.*utility, likelihood"):
        bilevel.meta_loss(x, x, x, x, x, mask, kind="reward", tau=1.0, rho=0.0, ratio_clip=0.2)
