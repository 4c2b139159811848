"""Which prompts stand for all: every one equally often, the rest left; rows and their transpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.meal import subset
from meal_jax.runtime import sharding


@pytest.mark.parametrize(("prompts", "fraction", "taken"), [(8, 0.5, 4), (8, 0.75, 6), (6, 1 / 3, 2), (5, 0.2, 1)])
def test_a_draw_takes_each_prompt_equally_often_and_leaves_the_rest(prompts, fraction, taken):
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = jax.vmap(lambda key: subset.draw(key, prompts, fraction))(keys)
    rows = jnp.arange(prompts)
    picked, left = (jax.vmap(subset.pick, (None, 0))(rows, places) for places in drawn)
    assert picked.shape == (3000, taken)
    np.testing.assert_array_equal(jnp.sort(jnp.concatenate([picked, left], axis=1), axis=1), np.tile(rows, (3000, 1)))
    often = np.bincount(np.ravel(picked), minlength=prompts) / 3000
    np.testing.assert_allclose(often, taken / prompts, atol=0.04)  # four standard deviations and more
    assert subset.draw(keys[0], prompts, fraction).scale == prompts / taken


def test_neighbours_share_a_group_so_that_devices_keep_their_rows():
    drawn = subset.draw(jax.random.key(1), 8, 0.5)
    np.testing.assert_array_equal(subset.pick(jnp.arange(8), drawn.taken) // 2, np.arange(4))


def test_what_is_picked_goes_back_where_it_was():
    drawn = subset.draw(jax.random.key(2), 6, 0.5)
    rows = {"x": jnp.arange(12.0).reshape(6, 2)}
    picked, put_back = subset.pick_back(rows, drawn.taken)
    back = put_back(picked)["x"]
    kept = np.isin(np.arange(6), subset.pick(jnp.arange(6), drawn.taken))
    np.testing.assert_array_equal(back, np.where(kept[:, None], rows["x"], 0.0))


@pytest.mark.parametrize(("fraction", "prompts"), [(0.3, 8), (0.01, 8), (1.5, 8), (0.0, 8)])
def test_a_part_that_is_no_whole_number_of_prompts_is_refused(fraction, prompts):
    with pytest.raises(ValueError, match=f"{fraction} of {prompts} prompts is not a whole number"):
        subset.size(prompts, fraction)


def test_a_mesh_takes_the_prompts_that_one_device_takes_and_moves_none():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")

    def take(key, rows):
        return subset.pick(rows, subset.draw(key, 16, 0.5).taken)

    key, rows = jax.random.key(3), jnp.arange(48.0).reshape(16, 3)
    mesh = sharding.make_mesh(2, 4, 1, devices=jax.devices()[:8])
    places = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(take, out_shardings=places).lower(key, jax.device_put(rows, places)).compile()
        spread = compiled(key, jax.device_put(rows, places))
    np.testing.assert_array_equal(spread, take(key, rows))
    moves = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    assert not [name for name in moves if name in compiled.as_text()]
