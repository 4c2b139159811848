"""The clip of the gradient: optax's to the bit, and with a derivative where every gradient is zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meal_jax.meal.clip import clip_by_global_norm


def grads(scale):
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in (("a", (3, 4)), ("b", (5,)))
    }


def clipped(tx, grads):
    return tx.update(grads, tx.init(grads))[0]


@pytest.mark.parametrize("scale", [0.0, 1e-25, 0.01, 0.1, 1.0, 1e6])
def test_it_is_optax_s_to_the_bit(scale):
    ours, theirs = clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)
    assert jax.tree.structure(ours.init(grads(1.0))) == jax.tree.structure(theirs.init(grads(1.0)))  # of checkpoints
    for run in (clipped, jax.jit(clipped, static_argnums=0)):
        jax.tree.map(np.testing.assert_array_equal, run(ours, grads(scale)), run(theirs, grads(scale)))


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0])
def test_its_derivative_is_that_of_finite_differences(scale):
    with jax.enable_x64(True):
        at, along = (jax.tree.map(lambda x: x.astype(jnp.float64), grads(s)) for s in (scale, 1.0))
        along = jax.tree.map(lambda x: jnp.sin(3 * x), along)
        tx, weight = clip_by_global_norm(0.5), jax.tree.map(jnp.cos, along)
        value = lambda g: sum(jax.tree.leaves(jax.tree.map(lambda u, v: jnp.sum(u * v), clipped(tx, g), weight)))  # noqa: E731
        shifted = lambda h: value(jax.tree.map(lambda g, d: g + h * d, at, along))  # noqa: E731
        grad = jax.grad(value)(at)
        ours = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), grad, along)))
        np.testing.assert_allclose(ours, (shifted(1e-6) - shifted(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)
        theirs = jax.grad(
            lambda g: sum(jnp.sum(u) for u in jax.tree.leaves(clipped(optax.clip_by_global_norm(0.5), g)))
        )(at)
        assert bool(jnp.isnan(theirs["a"]).all()) == (scale == 0)  # when optax has it too, this file can go
