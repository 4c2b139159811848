"""The step: one compile, the static limit to the bit, its gradient in the weight-net, its independence of layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meal_jax.meal import bilevel, step
from meal_jax.meal.preference import accept, draw_targets
from meal_jax.models.lora import Lora
from meal_jax.models.policy import token_stats
from meal_jax.rewards.normalise import absorb, normalise
from meal_jax.rollout.decode import decode, sample_keys
from meal_jax.rollout.sampling import Sampling
from meal_jax.testing import END, PAD, tiny


def jitted(run, **kwargs):
    return jax.jit(functools.partial(step.step, run.setup), **kwargs)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(_data, a), jax.tree.map(_data, b))


def _data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_a_step_runs_donated_compiles_once_and_changes_both_levels(objectives):
    run = tiny(objectives=objectives)
    before = jax.tree.map(jnp.copy, (run.state.policy, run.state.net))
    train, state = jitted(run, donate_argnums=0), run.state
    for _ in range(3):
        state, metrics = train(state, run.frozen, run.batch)
    assert train._cache_size() == 1
    assert int(state.step) == 3
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    for old, new in zip(before, (state.policy, state.net), strict=True):
        moved = [float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
        # With one objective there is one preference, and nothing for the net to learn.
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
    stats = absorb(state.rewards, rewards, m.horizon)
    r = normalise(stats, rewards)
    theta, opt = state.policy, state.policy_opt
    for half in (0, 1):
        take = lambda x: x.reshape(x.shape[0] // 2, 2, *x.shape[1:])[:, half]  # noqa: B023, E731
        keys = jax.vmap(jax.random.fold_in, (None, 0))(acceptance, take(batch.id))
        a = accept(keys, take(w), take(r), m.tau, m.accept)

        def loss(theta):
            variables = {"params": theta}
            prompt = setup.policy.apply(variables, take(batch.tokens), take(batch.mask), method="prefill")  # noqa: B023
            tokens = take(responses.tokens)  # noqa: B023
            hidden = setup.policy.apply(variables, prompt, take(w), tokens, method="respond")  # noqa: B023
            unembed = functools.partial(setup.policy.apply, variables, method="unembed")
            logp = token_stats(unembed, hidden, tokens, forbidden=setup.forbidden).logp
            return bilevel.base_loss(a, logp, take(responses.mask))  # noqa: B023

        updates, opt = setup.policy_tx.update(jax.grad(loss)(theta), opt, theta)
        theta = optax.apply_updates(theta, updates)
    return theta, responses


@pytest.mark.parametrize("how", ["soft", "sample", "top1"])
def test_no_pull_and_no_net_is_the_static_method(how):
    run = tiny(lam=0.0, net=False, adapt=True, tau=0.5, accept=how)
    ours, _ = jitted(run)(run.state, run.frozen, run.batch)
    # To the bit, the same step as with adaptation switched off.
    off = tiny(net=False, adapt=False, tau=0.5, accept=how)
    assert_trees_equal(ours.policy, jitted(off)(off.state, off.frozen, off.batch)[0].policy)
    # To rounding (another program, other fusions), the static method written out plainly.
    theirs, _ = jax.jit(functools.partial(static_step, run))(run.state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), ours.policy, theirs)
    pulled = tiny(lam=0.5, net=False, adapt=True, tau=0.5, accept=how)
    other, _ = jitted(pulled)(pulled.state, pulled.frozen, pulled.batch)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), ours.policy, other.policy)
    assert max(jax.tree.leaves(moved)) > 1e-5


def test_adapt_false_and_lambda_zero_agree_to_the_bit_with_the_net_on():
    states = [
        jitted(run)(run.state, run.frozen, run.batch)[0] for run in (tiny(lam=0.0), tiny(lam=0.7, adapt=False))
    ]
    assert_trees_equal(states[0], states[1])


def test_rollout_and_update_apart_are_the_step():
    run = tiny(beta=0.1)
    whole, metrics = jitted(run)(run.state, run.frozen, run.batch)
    part = functools.partial
    rolled = jax.jit(part(step.rollout, run.setup))(run.state, run.frozen, run.batch)
    scores = jax.jit(part(step.score, run.setup))(run.frozen, run.batch, rolled.responses)
    apart, apart_metrics = jax.jit(part(step.update, run.setup))(run.state, run.frozen, run.batch, rolled, scores)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(_data(a), _data(b), rtol=2e-5, atol=1e-6), whole, apart)
    assert metrics.keys() == apart_metrics.keys()


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


@pytest.mark.parametrize("conditioning", ["prefix", "text"])
@pytest.mark.parametrize("mode", ["exact", "first_order", "none"])
def test_hypergradient_of_the_step_is_the_derivative_of_its_own_losses(conditioning, mode):
    """The step's gradient in φ, read off one SGD step of the weight-net, against unrolling its two losses by hand."""
    with jax.enable_x64(True):
        run = tiny(conditioning=conditioning, hypergradient=mode, lam=0.5, tau=0.5, rho=0.3, model={"dtype": "float64"})
        setup = run.setup
        object.__setattr__(setup, "net_tx", optax.sgd(1.0))
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, run.state)
        # Away from its start, where the last layer is zero and no gradient reaches the layers below.
        phi = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(5), x.shape), state.net)
        state = state.replace(net=phi, net_opt=setup.net_tx.init(phi))
        rolled = step.rollout(setup, state, run.frozen, run.batch)
        scores = step.score(setup, run.frozen, run.batch, rolled.responses)
        new, _ = jax.jit(functools.partial(step.update, setup))(state, run.frozen, run.batch, rolled, scores)
        ours = jax.tree.map(jnp.subtract, phi, new.net)

        r = normalise(absorb(state.rewards, scores.rewards, setup.meal.horizon), scores.rewards)
        inner, outer = (step._half((run.batch, rolled, r), half) for half in (0, 1))

        def logp(theta, w, batch, responses):
            prompt = setup.policy.apply({"params": theta}, batch.tokens, batch.mask, method="prefill")
            hidden = setup.policy.apply({"params": theta}, prompt, w, responses.tokens, method="respond")
            logits = setup.policy.apply({"params": theta}, hidden, method="unembed")
            logits = jnp.where(setup.forbidden, -1e30, logits)
            return jnp.take_along_axis(jax.nn.log_softmax(logits), responses.tokens[..., None], -1)[..., 0]

        def base(theta, phi):
            batch, roll, r = inner
            p = step.adapt(setup.net.apply({"params": phi}, roll.pooled, roll.w), r, setup.meal.lam, setup.meal.tau)
            a = accept(None, p, r, setup.meal.tau, "soft")
            p = jax.lax.stop_gradient(p) if mode == "first_order" else p
            return bilevel.base_loss(a, logp(theta, p, batch, roll.responses), roll.responses.mask)

        def outer_loss(phi):
            frozen_phi = jax.lax.stop_gradient(phi) if mode == "none" else phi
            updates, _ = setup.policy_tx.update(jax.grad(base)(state.policy, frozen_phi), state.policy_opt, state.policy)
            theta = optax.apply_updates(state.policy, updates)
            batch, roll, r = outer
            w_hat = setup.net.apply({"params": phi}, roll.pooled, roll.w)
            return bilevel.meta_loss(
                roll.w, w_hat, r, logp(theta, w_hat, batch, roll.responses), roll.responses.logp, roll.responses.mask,
                kind="utility", tau=setup.meal.tau, rho=setup.meal.rho, ratio_clip=setup.meal.ratio_clip,
            )  # fmt: skip

        theirs = jax.jit(jax.grad(outer_loss))(phi)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), ours, theirs)
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(ours)) > 1e-6


def test_reused_virtual_update_is_the_first_policy_update():
    """With no learning rate for the net, φ stays, and taking θ' or redoing it comes to the same."""
    results = []
    for reuse in (True, False):
        run = tiny(reuse_virtual=reuse)
        object.__setattr__(run.setup, "net_tx", optax.sgd(0.0))
        run = run._replace(state=run.state.replace(net_opt=run.setup.net_tx.init(run.state.net)))
        results.append(jitted(run)(run.state, run.frozen, run.batch)[0].policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


@pytest.mark.parametrize(
    "options",
    [
        {"meta": "likelihood"},
        {"accept": "sample", "hypergradient": "first_order"},
        {"beta": 0.1, "chunk": 2},
        {"adapters": Lora(rank=2, dropout=0.1, targets="(q|v|down)$"), "beta": 0.05},
        {"conditioning": "text", "sampling": Sampling(temperature=0.7)},
        {"candidates": 1, "objectives": 3, "targets": "dirichlet"},
        {"targets": "shared", "objectives": 3, "model": {"dtype": "bfloat16", "remat": "full"}},
    ],
    ids=lambda o: "-".join(o),
)
def test_every_choice_runs_and_stays_finite(options):
    run = tiny(**options)
    state, metrics = jitted(run)(run.state, run.frozen, run.batch)
    assert all(np.isfinite(v) for v in jax.device_get(metrics).values())
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((state.policy, state.net)))


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


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_eight_devices_take_the_same_step_as_one(shape):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    from meal_jax.runtime import sharding

    run = tiny(batch=16, beta=0.1, model={"vocab_size": 16, "width": 16, "kv_heads": 2, "hidden": 32})
    run = run._replace(
        setup=run.setup.__class__(**{**run.setup.__dict__, "forbidden": jnp.arange(16) == PAD}),
    )
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
