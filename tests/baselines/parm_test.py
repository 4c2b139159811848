"""PARM's bilinear adapter against the dense formula; Soups in both spaces against merged matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import toy
from meal_jax.baselines import cpo, parm, rewarded_soups
from meal_jax.models.lora import Linear, Lora

D, F, R1, R2, L, K = 5, 7, 2, 3, 2, 2
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def apply(params, x, rank, alpha, layer):
    """Linear with the adapter of one layer."""
    module = Linear(F, Lora(rank=rank, alpha=alpha, targets=""))
    layer = jax.tree.map(lambda leaf: leaf[layer], params)
    return module.apply({"params": {"kernel": jnp.zeros((D, F)), **layer}}, x)


def test_the_adapter_of_a_preference_is_the_dense_formula():
    alpha = 8.0
    policy = {
        "adapter": {"q": {"lora_a": normal(L, D, R1 + R2), "lora_b": normal(L, R1 + R2, F)}},
        "core": {"q.lora_b": {"w1": normal(L, R1, R1), "w2": normal(L, K, R2, R2)}},
    }
    w, x = jnp.array([0.3, 0.7]), normal(4, D)
    out = parm.adapter_for(policy, w)["q"]
    a, b, core = policy["adapter"]["q"]["lora_a"], policy["adapter"]["q"]["lora_b"], policy["core"]["q.lora_b"]
    for layer in range(L):
        w2 = sum(w[k] * core["w2"][layer, k] for k in range(K))
        dense = a[layer][:, :R1] @ core["w1"][layer] @ b[layer][:R1] + a[layer][:, R1:] @ w2 @ b[layer][R1:]
        # As `configure` sets it: alpha / rank of the plain adapter is PARM's alpha / r2.
        actual = apply(out, x, R1 + R2, (R1 + R2) * alpha / R2, layer)
        np.testing.assert_allclose(actual, alpha / R2 * x @ dense, rtol=2e-5, atol=2e-5)


def test_pairs_go_from_the_ends_of_an_objectives_order_inwards():
    rewards = jnp.array([[[0.3, 1.0], [0.1, 1.0], [0.9, 1.0], [0.5, 0.0]]])  # [1, 4, 2]
    better, worse, proper = parm.paired(rewards, 2)
    assert better[0, :, 0].tolist() == [2, 3] and worse[0, :, 0].tolist() == [1, 0] and proper[0, :, 0].all()
    gap = [float(rewards[0, better[0, p, 1], 1] - rewards[0, worse[0, p, 1], 1]) for p in range(2)]
    assert gap == [1.0, 0.0] and proper[0, :, 1].tolist() == [True, False]  # a tie is no pair
    with pytest.raises(ValueError, match="config.parm.pairs=3 need twice as many"):
        c = toy.get_config()
        c.parm.pairs, c.meal.candidates = 3, 4
        parm.configure(c)


def test_soups_in_merged_space_average_the_weights_changes_and_in_factor_space_the_factors():
    thetas = {"q": {"lora_a": normal(K, L, D, R1), "lora_b": normal(K, L, R1, F)}, "norm": normal(K, D)}
    w, x, alpha = jnp.array([0.3, 0.7]), normal(4, D), 6.0
    a, b = thetas["q"]["lora_a"], thetas["q"]["lora_b"]
    merged, factor = (rewarded_soups.soup(thetas, w, space) for space in ("merged", "factor"))
    for layer in range(L):
        change = sum(w[k] * a[k, layer] @ b[k, layer] for k in range(K))
        actual = apply(merged["q"], x, K * R1, K * alpha, layer)  # as `widened` sets rank and alpha
        np.testing.assert_allclose(actual, alpha / R1 * x @ change, rtol=2e-5, atol=2e-5)
        both = sum(w[k] * a[k, layer] for k in range(K)) @ sum(w[k] * b[k, layer] for k in range(K))
        np.testing.assert_allclose(apply(factor["q"], x, R1, alpha, layer), alpha / R1 * x @ both, rtol=2e-5, atol=2e-5)
    for soup in (merged, factor):
        np.testing.assert_allclose(soup["norm"], w @ thetas["norm"], rtol=1e-6)


def test_cpo_ranks_controlled_scores_by_distance_and_free_ones_by_size():
    t = jnp.array([0.4, 1.0])
    s = jnp.array([[0.4, 0.5], [0.9, 0.5], [0.4, 0.8], [0.1, 0.5]])
    np.testing.assert_allclose(cpo.targeted(s, t, 2.0), [0.5, 0.5 - 1.0, 0.8, 0.5 - 0.6], rtol=1e-5)
