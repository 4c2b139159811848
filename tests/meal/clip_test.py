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
    actual, reference = clip_by_global_norm(0.5), optax.clip_by_global_norm(0.5)
    assert jax.tree.structure(actual.init(grads(1.0))) == jax.tree.structure(
        reference.init(grads(1.0))
    )  # of checkpoints
    for run in (clipped, jax.jit(clipped, static_argnums=0)):
        jax.tree.map(np.testing.assert_array_equal, run(actual, grads(scale)), run(reference, grads(scale)))


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0])
def test_its_derivative_is_that_of_finite_differences(scale):
    with jax.enable_x64(True):
        index, along = (jax.tree.map(lambda x: x.astype(jnp.float64), grads(s)) for s in (scale, 1.0))
        along = jax.tree.map(lambda x: jnp.sin(3 * x), along)
        tx, weight = clip_by_global_norm(0.5), jax.tree.map(jnp.cos, along)

        def value(g):
            return sum(jax.tree.leaves(jax.tree.map(lambda u, v: jnp.sum(u * v), clipped(tx, g), weight)))

        def shifted(h):
            return value(jax.tree.map(lambda g, d: g + h * d, index, along))

        grad = jax.grad(value)(index)
        actual = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), grad, along)))
        np.testing.assert_allclose(actual, (shifted(1e-6) - shifted(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)
        reference = jax.grad(
            lambda g: sum(jnp.sum(u) for u in jax.tree.leaves(clipped(optax.clip_by_global_norm(0.5), g)))
        )(index)
        assert bool(jnp.isnan(reference["a"]).all()) == (scale == 0)  # when optax has it too, this file can go
