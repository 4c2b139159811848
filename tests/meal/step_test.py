"""The step: one compile, the static limit to the bit, its gradient in the weight-net, its independence of layout."""

import dataclasses
import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meal_jax.meal import bilevel, step, subset
from meal_jax.meal.normalise import absorb, normalise, scale_by_pool
from meal_jax.meal.preference import accept, adapt, choose_tau, draw_targets
from meal_jax.models.lora import Lora, bake, merge
from meal_jax.models.policy import token_stats
from meal_jax.rollout.decode import decode, sample_keys
from meal_jax.rollout.sampling import Sampling
from meal_jax.testing import END, PAD, tiny
from tests import xla


def jitted(run, **kwargs):
    return jax.jit(functools.partial(step.step, run.setup), **kwargs)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(_data, a), jax.tree.map(_data, b))


def _data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize("objectives", [1, 3])
def test_a_step_runs_donated_compiles_once_and_changes_both_levels(objectives):
    run = tiny(objectives=objectives, net=objectives > 1)  # with one objective there is nothing to propose
    before = jax.tree.map(jnp.copy, (run.state.policy, run.state.net))
    train, state = jitted(run, donate_argnums=0), run.state
    for _ in range(3):
        state, metrics = train(state, run.frozen, run.batch)
    assert train._cache_size() == 1
    assert int(state.step) == 3
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    for old, new in zip(before, (state.policy, state.net), strict=True):
        moved = [float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
        assert max(moved) > 1e-4 or (objectives == 1 and new is state.net)


def static_step(run, state):
    """The static method written out plainly: no weight-net, no adaptation."""
    setup, frozen, batch, m = run.setup, run.frozen, run.batch, run.setup.meal
    targets, samples, acceptance, _ = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
    w = draw_targets(targets, batch.id, m.candidates, len(setup.objectives), m.targets)
    variables = {"params": state.policy}
    prompt = setup.policy.apply(variables, batch.tokens, batch.mask, method="prefill")
    responses = decode(
        setup.policy, state.policy, prompt, w, sample_keys(samples, batch.id, m.candidates), max_new=setup.max_new,
        sampling=setup.sampling, end=END, pad=PAD, forbidden=setup.forbidden,
    )  # fmt: skip
    rewards = setup.reward(frozen.reward, batch, responses)
    stats = absorb(state.rewards, rewards, m.stats_window)
    r = normalise(stats, rewards)
    theta, opt = state.policy, state.policy_opt
    before = [None, None]
    for half in (0, 1) * m.passes:

        def take(x):
            return x.reshape(x.shape[0] // 2, 2, *x.shape[1:])[:, half]  # noqa: B023

        keys = jax.vmap(jax.random.fold_in, (None, 0))(acceptance, take(batch.id))
        a = accept(keys, take(w), take(r), m.tau, m.accept)

        def loss(theta):
            variables = {"params": theta}
            prompt = setup.policy.apply(variables, take(batch.tokens), take(batch.mask), method="prefill")
            tokens = take(responses.tokens)
            hidden = setup.policy.apply(variables, prompt, take(w), tokens, method="respond")
            unembed = functools.partial(setup.policy.apply, variables, method="unembed")
            logp = token_stats(unembed, hidden, tokens, forbidden=setup.forbidden).logp
            old = before[half]  # noqa: B023
            return bilevel.base_loss(a - b, logp, take(responses.mask), over=(jnp.sum(a), 0), before=old), logp  # noqa: B023

        b = 1 / m.candidates if m.baseline == "pool" else 0.0
        grads = jax.grad(loss, has_aux=True)(theta)[0]
        before[half] = loss(state.policy)[1] if before[half] is None else before[half]
        updates, opt = setup.policy_tx.update(grads, opt, theta)
        theta = optax.apply_updates(theta, updates)
    return theta, optax.tree.norm(grads)


def test_no_pull_and_no_net_is_the_static_method():
    run = tiny(lam=0.0, net=False, adapt=True, tau=0.5, accept="sample")
    actual, _ = jitted(run)(run.state, run.frozen, run.batch)
    # To the bit, the same step as with adaptation switched off.
    off = tiny(net=False, adapt=False, tau=0.5, accept="sample")
    assert_trees_equal(actual.policy, jitted(off)(off.state, off.frozen, off.batch)[0].policy)
    # To rounding (another program, other fusions), the static method written out plainly.
    reference, _ = jax.jit(functools.partial(static_step, run))(run.state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), actual.policy, reference)


def test_dropout_leaves_the_meta_objectives_ratio_alone():
    """Of a policy that does not move every ratio is 1, however many of its adapters' inputs drop out where it learns."""
    run = tiny(
        adapters=Lora(4, dropout=0.5, targets=""),
        policy_tx=optax.sgd(0.0),
        rho=0.0,
        lam=0.5,
        tau=0.5,
        hypergradient="none",
    )
    theta = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), run.state.policy)
    state = run.state.replace(policy=theta)
    rolled = jax.jit(functools.partial(step.rollout, run.setup))(state, run.frozen, run.batch)
    rewards = step.score(run.setup, run.frozen, run.batch, rolled.responses).rewards
    r = normalise(absorb(state.rewards, rewards, run.setup.meal.stats_window), rewards)
    half, r = step._half((rolled, r), 1)
    old, mask = half.responses.logp, half.responses.mask
    options = {"kind": "utility", "tau": 0.5, "rho": 0.0, "ratio_clip": run.setup.meal.ratio_clip}
    expected = float(bilevel.meta_loss(half.w, half.w_hat, r, old, old, mask, **options))
    actual = float(jitted(run)(state, run.frozen, run.batch)[1]["loss/meta"])
    assert actual == pytest.approx(expected, rel=1e-5) and abs(expected) > 1e-3


@pytest.mark.slow
def test_a_pool_that_serves_twice_is_the_static_method_again_with_ratios():
    run = tiny(net=False, adapt=False, tau=0.5, baseline="pool", passes=2, policy_tx=optax.sgd(20.0))
    actual, metrics = jitted(run)(run.state, run.frozen, run.batch)
    reference, norm = jax.jit(functools.partial(static_step, run))(run.state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), actual.policy, reference)
    assert float(metrics["grad_norm/policy"]) == pytest.approx(float(norm), rel=1e-3)  # the last update's
    steps = [jax.tree.map(jnp.subtract, actual.policy, run.state.policy)]
    once = dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, passes=1))
    first = jax.jit(functools.partial(step.step, once))(run.state, run.frozen, run.batch)[0]
    steps.append(jax.tree.map(jnp.subtract, actual.policy, first.policy))
    assert min(float(optax.tree.norm(moved)) for moved in steps) > 0.01


def test_rollout_and_update_apart_are_the_step_and_the_pull_matters():
    run = tiny(beta=0.1, net=False, lam=0.5, tau=0.5)
    whole, metrics = jitted(run)(run.state, run.frozen, run.batch)
    part = functools.partial
    rolled = jax.jit(part(step.rollout, run.setup))(run.state, run.frozen, run.batch)
    scores = jax.jit(part(step.score, run.setup))(run.frozen, run.batch, rolled.responses)

    def update(run):
        return jax.jit(part(step.update, run.setup))(run.state, run.frozen, run.batch, rolled, scores)

    apart, apart_metrics = update(run)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(_data(x), _data(y), rtol=2e-5, atol=1e-6), whole, apart)
    assert metrics.keys() == apart_metrics.keys()
    static, _ = update(tiny(beta=0.1, net=False, adapt=False, tau=0.5))
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), apart.policy, static.policy)
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_samples_change_from_step_to_step_and_repeat_with_the_state():
    run = tiny()
    roll = jax.jit(functools.partial(step.rollout, run.setup))
    first = roll(run.state, run.frozen, run.batch)
    again = roll(run.state, run.frozen, run.batch)
    later = roll(run.state.replace(step=run.state.step + 1), run.frozen, run.batch)
    assert_trees_equal(first, again)
    assert np.any(first.responses.tokens != later.responses.tokens)
    assert np.abs(first.w - later.w).max() > 1e-3


def test_a_prompts_rollout_does_not_depend_on_its_neighbours():
    run = tiny(batch=4)
    roll = jax.jit(functools.partial(step.rollout, run.setup))
    order = jnp.array([2, 0, 3, 1])
    straight = roll(run.state, run.frozen, run.batch)
    mixed = roll(run.state, run.frozen, jax.tree.map(lambda x: x[order], run.batch))
    np.testing.assert_array_equal(mixed.responses.tokens, straight.responses.tokens[order])
    np.testing.assert_array_equal(mixed.w, straight.w[order])


def moved(run):
    """The run with every trained weight off its start, where adapters do nothing."""
    theta = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(3), x.shape), run.state.policy)
    return run._replace(state=run.state.replace(policy=theta))


ADAPTERS = Lora(4, targets="(q|v|down)$")


@pytest.mark.parametrize(
    ("conditioning", "mode", "signal"),
    [
        ("prefix", "exact", {}),
        ("text", "exact", {}),
        ("prefix", "first_order", {}),
        ("prefix", "none", {}),
        ("adapter", "exact", {"baseline": "leave_one_out", "accept_share": 0.6, "reward_scale": "pool", "passes": 2}),
        ("prefix", "exact", {"baseline": "pool", "rejected": "proposed"}),
    ],
)
def test_hypergradient_of_the_step_is_the_derivative_of_its_own_losses(conditioning, mode, signal):
    """The step's gradient in φ, read off one SGD step of the weight-net, against unrolling its two losses by hand."""
    adapters = ADAPTERS if conditioning == "adapter" else None
    run = tiny(conditioning=conditioning, hypergradient=mode, lam=0.5, tau=0.5, rho=0.3, adapters=adapters, **signal)
    run = moved(run) if adapters else run
    setup = dataclasses.replace(run.setup, net_tx=optax.sgd(1.0))
    # Away from its start, where the last layer is zero and no gradient reaches the layers below.
    phi = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), run.state.net)
    state = run.state.replace(net=phi, net_opt=setup.net_tx.init(phi))

    @jax.jit
    def actual(phi):
        rolled = step.rollout(setup, state, run.frozen, run.batch)
        scores = step.score(setup, run.frozen, run.batch, rolled.responses)
        new, _ = step.update(setup, state.replace(net=phi), run.frozen, run.batch, rolled, scores)
        return jax.tree.map(jnp.subtract, phi, new.net), rolled, scores.rewards

    grad, rolled, rewards = actual(phi)
    r = normalise(absorb(state.rewards, rewards, setup.meal.stats_window), rewards)
    tau = jnp.full(4, setup.meal.tau)
    if "accept_share" in signal:
        r = scale_by_pool(r)
        tau = choose_tau(rolled.w, r, 0.6)
        assert float(jnp.ptp(tau)) > 0.01
    inner, outer = (step._half((run.batch, rolled, r, tau), half) for half in (0, 1))

    def logp(theta, w, batch, responses):
        apply = functools.partial(setup.policy.apply, {"params": merge(theta, run.frozen.policy)})
        prompt = apply(batch.tokens, batch.mask, method="prefill")
        hidden = apply(prompt, w, responses.tokens, method="respond")
        logits = apply(hidden, method="unembed")
        logits = jnp.where(setup.forbidden, -1e30, logits)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), responses.tokens[..., None], -1)[..., 0]

    def base(theta, phi):
        batch, roll, r, tau = inner
        w_hat = setup.net.apply({"params": phi}, roll.pooled, roll.w)
        p = adapt(w_hat, r, tau, tau)  # λ/τ is 1
        if "rejected" in signal:
            rejected = accept(None, p, r, tau, "soft") < 1 / 4
            assert setup.meal.baseline == "pool" and rejected.size == 8
            p = jnp.where(rejected[..., None], w_hat, p)
        a = accept(None, p, r, tau, "soft")
        b = {"none": 0.0, "pool": 1 / 4, "leave_one_out": (1 - a) / 3}[setup.meal.baseline]
        p = jax.lax.stop_gradient(p) if mode == "first_order" else p
        token, mask = logp(theta, p, batch, roll.responses), roll.responses.mask
        return bilevel.base_loss(a - b, token, mask, over=(jnp.sum(a), jnp.sum(mask)))

    def unrolled(phi):
        frozen_phi = jax.lax.stop_gradient(phi) if mode == "none" else phi
        updates, _ = setup.policy_tx.update(jax.grad(base)(state.policy, frozen_phi), state.policy_opt, state.policy)
        theta = optax.apply_updates(state.policy, updates)
        batch, roll, r, tau = outer
        w_hat = setup.net.apply({"params": phi}, roll.pooled, roll.w)
        return bilevel.meta_loss(
            roll.w, w_hat, r, logp(theta, w_hat, batch, roll.responses), roll.responses.logp, roll.responses.mask,
            kind="utility", tau=tau, rho=setup.meal.rho, ratio_clip=setup.meal.ratio_clip,
        )  # fmt: skip

    def flat(tree):
        return jax.flatten_util.ravel_pytree(tree)[0]

    actual, reference = flat(grad), flat(jax.jit(jax.grad(unrolled))(phi))
    # The network computes in float32; the first step of Adam, a sign, magnifies its rounding.
    assert jnp.linalg.norm(actual - reference) < 5e-3 * jnp.linalg.norm(reference)


def test_a_rejected_response_counts_against_the_preference_that_was_asked_for():
    """And an accepted one for the preference that it embodies; what its weight says does not change with the preference."""
    run = tiny(baseline="pool", rejected="adapted", lam=0.5, tau=0.5, candidates=6)
    other = dataclasses.replace(run.setup, meal=dataclasses.replace(run.setup.meal, rejected="proposed"))

    @jax.jit
    def parts(state, frozen, batch):
        rolled = step.rollout(run.setup, state, frozen, batch)
        scores = step.score(run.setup, frozen, batch, rolled.responses)
        r = normalise(absorb(state.rewards, scores.rewards, 100.0), scores.rewards)
        pool = step._Pool(batch, rolled, r, None)
        return [step._preferences(setup, state.key, state.net, pool) for setup in (run.setup, other)]

    (w_hat, adapted, a, b), (_, p, weight, baseline) = parts(run.state, run.frozen, run.batch)
    rejected = np.asarray(a < b)
    assert 0 < rejected.sum() < rejected.size and np.all(baseline == b)
    np.testing.assert_array_equal(p, np.where(rejected[..., None], w_hat, adapted))
    np.testing.assert_array_equal(weight[~rejected], a[~rejected])
    assert np.all(
        weight[rejected] <= a[rejected] + 1e-6
    )  # no response is accepted more readily than under its adapted one
    assert float(jnp.abs(w_hat - adapted)[rejected].max()) > 0.01


def test_reused_virtual_update_is_the_first_policy_update():
    """With no learning rate for the net, φ stays, and taking θ' or redoing it comes to the same."""
    results = []
    for reuse in (True, False):
        run = tiny(reuse_virtual=reuse, hypergradient="none")
        run = run._replace(
            setup=dataclasses.replace(run.setup, net_tx=optax.sgd(0.0)),
            state=run.state.replace(net_opt=optax.sgd(0.0).init(run.state.net)),
        )
        results.append(jitted(run)(run.state, run.frozen, run.batch)[0].policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_prompts_read_at_each_candidates_preference_make_a_plain_model_at_each():
    """`conditioning.prompt=preference`: rollout and teacher-forced pass, against the baked policy of each candidate alone."""
    run = moved(tiny(conditioning="adapter", adapters=ADAPTERS, net=False, prompt="preference"))
    roll = jax.jit(functools.partial(step.rollout, run.setup))(run.state, run.frozen, run.batch)
    read = functools.partial(step.read, run.setup)
    token, hidden = jax.jit(read)(run.state.policy, run.frozen, run.batch, roll.w_hat, roll.responses.tokens)
    mask = roll.responses.mask
    np.testing.assert_allclose(token.logp * mask, roll.responses.logp, atol=2e-5)

    policy = run.setup.policy.clone(conditioning=dataclasses.replace(run.setup.policy.conditioning, kind="none"))

    @jax.jit
    def alone(w, batch, tokens):
        params = bake(merge(run.state.policy, run.frozen.policy), w)
        prompt = policy.apply({"params": params}, batch.tokens[None], batch.mask[None], method="prefill")
        return policy.apply({"params": params}, prompt, w[None, None], tokens[None, None], method="respond")[0, 0]

    for b, n in ((0, 1), (1, 0), (3, 3)):
        expected = alone(roll.w_hat[b, n], jax.tree.map(lambda x: x[b], run.batch), roll.responses.tokens[b, n])  # noqa: B023
        np.testing.assert_allclose(hidden[b, n], expected, atol=5e-5)
    shared = run.setup.policy.clone(conditioning=dataclasses.replace(run.setup.policy.conditioning, prompt="uniform"))
    setup = dataclasses.replace(run.setup, policy=shared)
    other, _ = step.read(setup, run.state.policy, run.frozen, run.batch, roll.w_hat, roll.responses.tokens)
    assert float(jnp.abs((other.logp - token.logp) * mask).max()) > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {
            "conditioning": "adapter+prefix",
            "adapters": ADAPTERS,
            "prompt": "preference",
            "beta": 0.1,
            "reuse_virtual": True,
        },
        pytest.param({"beta": 0.1, "meta": "likelihood", "reuse_virtual": True}, marks=pytest.mark.slow),
        pytest.param({"hypergradient": "first_order"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_parts_of_a_batch_after_another_make_the_same_step(options):
    """Short steps of SGD: long ones, and Adam's first, a sign, magnify rounding. The net's gradient is read off its own step.

    Compiled as runs are: how the older emitters, which other tests use, approximate exp and tanh depends on an array's shape,
    and without optimisation an Intel CPU differed by 3e-6.
    """
    results, workspace = [], []
    for micro in (step.Micro(), step.Micro(rollout=2, score=4, gradient=2)):
        run = tiny(batch=8, lam=0.5, tau=0.5, policy_tx=optax.sgd(0.05), **options)
        setup = dataclasses.replace(run.setup, net_tx=optax.sgd(1.0), micro=micro)
        phi = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), run.state.net)
        state = run.state.replace(net=phi, net_opt=setup.net_tx.init(phi))
        train = jax.jit(functools.partial(step.step, setup)).lower(state, run.frozen, run.batch)
        train = train.compile(xla.AS_RUNS_ARE)
        workspace.append(train.memory_analysis().temp_size_in_bytes)
        new, metrics = train(state, run.frozen, run.batch)
        results.append((new.policy, jax.tree.map(jnp.subtract, new.net, phi), metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), *results)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(results[0][1])) > 1e-4
    assert workspace[1] < workspace[0] / 2  # what a whole half keeps for the mixed derivative is more than half of it


@pytest.mark.parametrize(
    "options",
    [
        {"meta": "likelihood", "accept": "top1", "beta": 0.1, "chunk": 2, "targets": "dirichlet"},
        {"conditioning": "text", "sampling": Sampling(temperature=0.7), "hypergradient": "none", "candidates": 1},
        {"targets": "shared", "objectives": 3, "net": False, "model": {"dtype": "bfloat16", "remat": "full"}},
        {
            "conditioning": "adapter+text",
            "adapters": Lora(6, dropout=0.1, targets="(q|v|down)$"),
            "objectives": 3,
            "beta": 0.1,
            "accept": "sample",
            "hypergradient": "first_order",
            "model": {"remat": "dots"},
        },
    ],
    ids=lambda o: "-".join(map(str, o)),
)
def test_every_choice_runs_and_stays_finite(options):
    run = tiny(**options)
    state, metrics = jitted(run)(run.state, run.frozen, run.batch)
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((state.policy, state.net)))


def parted(micro=None, **options):
    """A run whose weight-net is away from its start and takes a plain gradient step, and whose policy is updated by SGD."""
    run = tiny(batch=8, lam=0.5, tau=0.5, policy_tx=optax.sgd(0.5), reuse_virtual=True, **options)
    setup = dataclasses.replace(run.setup, net_tx=optax.sgd(1.0), micro=step.Micro(gradient=micro))
    phi = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), run.state.net)
    return run._replace(setup=setup, state=run.state.replace(net=phi, net_opt=setup.net_tx.init(phi)))


@pytest.mark.parametrize("micro", [None, pytest.param(2, marks=pytest.mark.slow)], ids=["whole", "in_parts"])
def test_a_step_on_random_prompts_has_the_exact_net_gradient_on_average(micro, monkeypatch):
    """All 16 pairs of halves of both halves, given in the place of drawn ones."""
    run, exact = parted(micro, meta_fraction=0.5), parted(meta_fraction=1.0)
    rolled = jax.jit(functools.partial(step.rollout, run.setup))(run.state, run.frozen, run.batch)
    scores = step.score(run.setup, run.frozen, run.batch, rolled.responses)

    def update(run, drawn=None):
        given = iter(drawn or ())
        monkeypatch.setattr(step.subset, "draw", lambda *_: next(given))  # with none given: an exact step draws nothing
        new, metrics = step.update(run.setup, run.state, run.frozen, run.batch, rolled, scores)
        return jax.flatten_util.ravel_pytree(jax.tree.map(jnp.subtract, run.state.net, new.net))[0], metrics[
            "loss/meta"
        ]

    expected, expected_meta = jax.jit(functools.partial(update, exact))()
    estimate = jax.jit(functools.partial(update, run))
    sides = [np.array(sides)[:, None] for sides in itertools.product((0, 1), repeat=2)]
    draws = [subset.Subset(jnp.array(side), jnp.array(1 - side)) for side in sides]
    grads, metas = (
        np.array(each, np.float64) for each in zip(*map(estimate, itertools.product(draws, repeat=2)), strict=True)
    )
    size = np.linalg.norm(expected)  # to float32's rounding; in float64, tests/meal/bilevel_test.py
    assert np.linalg.norm(grads.mean(axis=0) - expected) < 1e-5 * size < np.linalg.norm(grads[0] - expected) / 5000
    np.testing.assert_allclose(metas.mean(), expected_meta, rtol=1e-5)


def test_kl_starts_at_zero_and_pulls_back():
    """At the start the unconditioned policy is π_ref; the KL of a moved policy is positive and lowers its loss less."""
    run = tiny(beta=1.0, conditioning="none", net=False)
    rolled = step.rollout(run.setup, run.state, run.frozen, run.batch)
    scores = step.score(run.setup, run.frozen, run.batch, rolled.responses)
    apply = functools.partial(run.setup.policy.apply, {"params": run.state.policy})
    prompt = apply(run.batch.tokens, run.batch.mask, method="prefill")
    hidden = apply(prompt, rolled.w, rolled.responses.tokens, method="respond")
    unembed = functools.partial(apply, method="unembed")
    base = functools.partial(run.setup.base.apply, {"params": run.frozen.base}, method="unembed")
    stats = token_stats(unembed, hidden, rolled.responses.tokens, reference=(base, scores.reference))
    np.testing.assert_allclose(stats.kl, 0.0, atol=1e-5)
    moved = token_stats(unembed, hidden * 1.5, rolled.responses.tokens, reference=(base, scores.reference))
    assert float(moved.kl.min()) > 0


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 2, 2), {}),
        pytest.param((2, 2, 2), {"net": True, "meta_fraction": 0.5}, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), {}, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), {}, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), {"conditioning": "adapter", "adapters": ADAPTERS}, marks=pytest.mark.slow),
    ],
    ids=["2,2,2", "2,2,2,half", "8,1,1", "2,4,1", "2,2,2,adapter"],
)
def test_eight_devices_take_the_same_step_as_one(shape, options):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    from meal_jax.runtime import sharding

    run = tiny(
        batch=16, lam=0.5, tau=0.5, model={"vocab_size": 16, "width": 16, "kv_heads": 2, "hidden": 32},
        **{"net": False} | options,
    )  # fmt: skip
    run = run._replace(setup=dataclasses.replace(run.setup, forbidden=jnp.arange(16) == PAD))
    results = []
    for axes in ((1, 1, 1), shape):
        mesh = sharding.make_mesh(*axes, devices=jax.devices()[: np.prod(axes)])
        with jax.set_mesh(mesh):
            placed = sharding.shardings(run.state, mesh)
            state = jax.device_put(jax.tree.map(lambda x: x, run.state), placed)
            frozen = jax.device_put(run.frozen, sharding.shardings(run.frozen, mesh))
            batch = jax.device_put(run.batch, sharding.batch_sharding(mesh))
            roll = jax.jit(functools.partial(step.rollout, run.setup))(state, frozen, batch)
            train = jitted(run, out_shardings=(placed, sharding.replicated(mesh)))
            for _ in range(2):
                state, metrics = train(state, frozen, batch)
            assert train._cache_size() == 1
            results.append(jax.device_get((roll.responses.tokens, metrics, state.policy)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for a, b in zip(jax.tree.leaves(results[0][1:]), jax.tree.leaves(results[1][1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
