"""Every method through the functions that training and evaluation call, on the toy benchmark in miniature."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import toy
from meal_jax import build, evaluate, methods
from meal_jax.baselines import parm, rewarded_soups
from meal_jax.data.pipeline import batch_at
from meal_jax.meal import step
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import sharding

# A compile each of a quarter of a minute: the default suite has one of each kind, `-m slow` the rest.
IN_DEFAULT = ("ric", "soups", "parm")


def miniature():
    c = toy.get_config()
    c.steps, c.batch_size, c.meal.candidates = 4, 4, 4
    c.policy.width = c.policy.hidden = 16
    c.policy.heads = c.policy.kv_heads = c.policy.layers = 1
    c.sampling.max_new = 5
    c.eval.prompts, c.eval.divisions = 16, 2
    c.ric.buffer, c.ric.offline_steps, c.dpo.sft_steps, c.parm.pairs = 64, 1, 1, 2
    return c


@pytest.mark.parametrize(
    "name", [n if n in IN_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in methods.METHODS]
)
def test_a_method_trains_and_answers(name, documented, monkeypatch):
    config = methods.configure(name, miniature())
    method, cost = methods.get(name), methods.get(name).cost(config)
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    key = jax.random.key(0)
    theta, frozen = jax.jit(functools.partial(build.init_policy, setup, task))(key)
    state = jax.jit(functools.partial(method.init, setup))(theta, key)
    before = jax.device_get(state)
    train = jax.jit(functools.partial(method.step, setup))
    for index in range(2):  # the two stages of those that have two
        batch = batch_at(task.train, index, config.batch_size, 0)
        state, metrics = train(state, frozen, batch)
        assert all(np.isfinite(value) for value in jax.device_get(metrics).values()), metrics
    assert train._cache_size() == 1 and int(state.step) == 2
    assert {"utility", "response/length", "reward/first/mean", "reward/second/std"} <= metrics.keys()
    assert metrics.keys() <= set().union(*documented(config.objectives).values())
    rolled = jax.eval_shape(functools.partial(method.rollout, setup), state, frozen, batch)
    assert rolled.responses.tokens.shape == (config.batch_size, cost.answers, config.sampling.max_new)

    def learned(s):
        return jax.tree.leaves(s.members["policy"] if hasattr(s, "members") else s.policy)

    assert any(
        np.abs(np.asarray(new) - old).max() > 1e-5 for new, old in zip(learned(state), learned(before), strict=True)
    )

    preferences = evaluate.grid(config)
    answer = jax.jit(evaluate.answer_fn(setup, method, Sampling()))
    answers = evaluate.evaluate(
        answer, state, frozen, task.test, preferences, batch_size=16, seed=0, place=lambda batch: batch
    )
    assert answers.scores.shape == (16, len(preferences), 2) and np.isfinite(answers.scores).all()
    assert answers.tokens.shape == (16, len(preferences), config.sampling.max_new)
    sizes = []
    if name in ("mod", "parm"):  # others by `step.respond`, which has a test of its own
        module = parm if name == "parm" else rewarded_soups
        mixture = module.decode_mixture
        monkeypatch.setattr(
            module,
            "decode_mixture",
            lambda models, w, tokens, *a, **k: sizes.append(len(tokens)) or mixture(models, w, tokens, *a, **k),
        )
        setup = dataclasses.replace(setup, micro=dataclasses.replace(setup.micro, rollout=4))
        answer = jax.jit(evaluate.answer_fn(setup, method, Sampling()))
    again = evaluate.evaluate(
        answer, state, frozen, task.test, preferences, batch_size=16, seed=0, place=lambda batch: batch
    )
    np.testing.assert_array_equal(answers.tokens, again.tokens)
    assert set(sizes) <= {4} and bool(sizes) == (name in ("mod", "parm"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in methods.METHODS if n not in ("meal", "static")]
)  # those: meal/step_test.py
def test_eight_devices_or_parts_of_a_batch_train_a_method_as_one_device_does(name):
    states = []
    for axes, micro in (((1, 1, 1), {}), ((2, 2, 2), {}), ((4, 2, 1), {}), ((1, 1, 1), {"rollout": 4, "score": 2})):
        c = miniature()
        c.batch_size, c.policy.heads, c.policy.kv_heads = 8, 2, 2
        c.micro.update(micro)
        config, method = methods.configure(name, c), methods.get(name)
        task = build.build_task(config)
        setup = build.build_setup(config, task)
        mesh = sharding.make_mesh(*axes, devices=jax.devices()[: np.prod(axes)])
        with jax.set_mesh(mesh):
            key = jax.random.key(0)
            theta, frozen = jax.jit(functools.partial(build.init_policy, setup, task))(key)
            state = jax.jit(functools.partial(method.init, setup))(theta, key)
            placed = sharding.shardings(state, mesh)
            state, frozen = jax.device_put(state, placed), jax.device_put(frozen, sharding.shardings(frozen, mesh))
            out = (placed, sharding.replicated(mesh))
            train = jax.jit(functools.partial(method.step, setup), out_shardings=out)
            for index in range(3):
                batch = batch_at(task.train, index, config.batch_size, 0)
                state, metrics = train(state, frozen, jax.device_put(batch, sharding.batch_sharding(mesh)))
        numbers = [x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]
        states.append(jax.device_get((numbers, metrics)))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), states[0], other)


@pytest.mark.parametrize("name", ["ric", "cpo", "modpo", "parm"])
def test_training_passes_drop_out_under_keys_that_differ(name, monkeypatch):
    c = miniature()
    c.policy.lora_rank, c.policy.lora_dropout = 2, 0.5
    config, method = methods.configure(name, c), methods.get(name)
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    key, given, read = jax.random.key(0), [], step.read

    def remembered(*args, dropout_key=None, **kwargs):
        given.append(dropout_key)
        return read(*args, dropout_key=dropout_key, **kwargs)

    monkeypatch.setattr(step, "read", remembered)
    theta, frozen = jax.eval_shape(functools.partial(build.init_policy, setup, task), key)
    state = jax.eval_shape(functools.partial(method.init, setup), theta, key)
    batch = batch_at(task.train, 0, config.batch_size, 0)
    jax.eval_shape(functools.partial(method.step, setup), state, frozen, batch)
    assert any(key is not None for key in given)


def test_what_a_method_cannot_do_is_refused_before_anything_is_built():
    c = miniature()
    c.ric.buffer = 3
    with pytest.raises(ValueError, match="config.ric.buffer=3 does not hold the 16 answers"):
        methods.configure("ric", c)
    c.ppo.minibatches = 3
    with pytest.raises(ValueError, match="minibatches=3 does not divide"):
        methods.configure("soups", c)
    with pytest.raises(ValueError, match="'dpo' is not one of meal, static"):
        methods.configure("dpo", c)
    c.meal.candidates = 1
    with pytest.raises(ValueError, match=r"config\.meal\.candidates=1 must be at least 2 for CPO"):
        methods.configure("cpo", c)


def test_costs_count_models_and_passes():
    c = toy.get_config()
    cost = {name: methods.get(name).cost(methods.configure(name, c)) for name in methods.METHODS}
    assert {name: (x.models, x.forwards) for name, x in cost.items() if (x.models, x.forwards) != (1, 1)} == {
        "morlhf": (5, 1), "soups": (2, 1), "mod": (2, 2), "parm": (2, 2), "modpo": (5, 1),
    }  # fmt: skip
    assert cost["meal"].answers == cost["static"].answers == cost["ric"].answers == 16
    assert cost["morlhf"].answers == cost["modpo"].answers == 15 and cost["soups"].answers == 16  # 3 of each of 5
    trained = {name: x.updates * (x.models - x.frozen) for name, x in cost.items()}
    assert {name: updates for name, updates in trained.items() if updates != 2} == {
        "morlhf": 20, "soups": 8, "mod": 8, "modpo": 10,
    }  # fmt: skip
    assert cost["static"].backward == 1.0 and cost["meal"].backward == 2.0  # θ' is reused, so two halves more
    m = toy.get_config()
    m.meal.reuse_virtual, m.meal.hypergradient = False, "first_order"
    assert methods.get("meal").cost(m).backward == 2.0
    m.meal.reuse_virtual, m.meal.hypergradient, m.meal.meta_fraction = True, "exact", 0.25
    assert methods.get("meal").cost(m).backward == 1.25
