"""A step that moves nothing where a reward is not a finite number, and the same step with its reward mended."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal import halt, step
from meal_jax.testing import tiny

VALUES = [np.nan, np.inf, -np.inf, 2e15]


def raw(tree):
    keyed = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x).tobytes() for x in keyed]


@pytest.fixture(scope="module")
def run():
    return tiny(hypergradient="none")  # half of a step's compilation, and halting knows nothing of it


@pytest.fixture(scope="module")
def programs(run):
    """A plain step, and a halting one whose reward of row 3 and objective 1 a batch's first id replaces."""
    sound = run.setup.reward

    def reward(params, batch, responses, hidden=None):
        r = sound(params, batch, responses, hidden)
        rows = r.reshape(-1, r.shape[-1])
        value = jnp.array(VALUES)[-batch.id[0]]
        return jnp.where(batch.id[0] <= 0, rows.at[3, 1].set(value), rows).reshape(r.shape)

    setup = dataclasses.replace(run.setup, reward=reward)
    update = halt.halting(step.update)

    def halting_step(state, frozen, batch):
        rolled = step.rollout(setup, state, frozen, batch)
        return update(setup, state, frozen, batch, rolled, step.score(setup, frozen, batch, rolled.responses))

    return jax.jit(functools.partial(step.step, run.setup)), jax.jit(halting_step, donate_argnums=0)


def copied(run):
    return jax.tree.map(jnp.copy, run.state)


@pytest.mark.parametrize("value", VALUES)
def test_the_state_is_the_one_before_whatever_is_dispatched_after_it(run, programs, value):
    plain, halting = programs
    good = run.batch._replace(id=run.batch.id + 1)
    faulty = good._replace(id=jnp.full_like(good.id, -VALUES.index(value)))
    before, expected = plain(run.state, run.frozen, good)
    state, metrics = halting(copied(run), run.frozen, good)
    rest, fault = halt.fault_of(jax.device_get(metrics))
    assert fault is None and raw(state) == raw(before) and raw(rest) == raw(jax.device_get(expected))

    state, metrics = halting(state, run.frozen, faulty)
    for batch in (good, faulty, good):  # dispatched before anybody has read those metrics
        state, _ = halting(state, run.frozen, batch)
    rest, fault = halt.fault_of({name: float(v) for name, v in metrics.items()})
    assert (fault.objective, fault.row, fault.count) == (1, 3, 1) and np.isnan(list(rest.values())).all()
    np.testing.assert_equal(fault.value, float(np.float32(value)))
    assert int(state.step) < 0 and raw(halt.release(state)) == raw(before)
    said = halt.describe(fault, ("a", "b"), ("", "jax:mine.py:f"))
    wrong = "not a finite number" if not np.isfinite(value) else "beyond ±1e+15, too large to be normalised,"
    assert said.startswith(f"the reward of objective 'b' (jax:mine.py:f) is {wrong} for 1 of")
    assert said.endswith(f"the first is row 3, {fault.value}")
