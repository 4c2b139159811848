"""DPO and MODPO: gradients against hand derivations, the choice of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.baselines import dpo


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_gradient_of_dpo_is_the_chance_of_the_wrong_order():
    chosen, rejected, beta = 0.7, 1.9, 0.3
    loss, (up, down) = jax.value_and_grad(dpo.dpo_loss, argnums=(0, 1))(chosen, rejected, beta)
    wrong = sigmoid(-beta * (chosen - rejected))
    assert loss == pytest.approx(-np.log(1 - wrong), rel=1e-5)
    assert up == pytest.approx(-beta * wrong, rel=1e-5) and down == pytest.approx(beta * wrong, rel=1e-5)


def test_the_gradient_of_modpo_has_the_margin_inside_and_the_weight_outside():
    chosen, rejected, beta, main, margin = 0.7, 1.9, 0.3, 0.6, -0.25
    up = jax.grad(dpo.modpo_loss)(chosen, rejected, beta, main, margin)
    wrong = sigmoid(-(beta * (chosen - rejected) - margin) / main)
    assert up == pytest.approx(-beta / main * wrong, rel=1e-5)
    same = dpo.modpo_loss(chosen, rejected, beta, 1.0, 0.0)
    assert same == pytest.approx(float(dpo.dpo_loss(chosen, rejected, beta)), rel=1e-6)


def test_modpo_rests_where_the_weighted_rewards_are_those_of_the_policy():
    """With r_main from Bradley–Terry labels, the minimum has β Δ = w_main r_main + Σ_j w_j m_j: the paper's claim."""
    main, beta, margin, gap = 0.7, 0.5, 0.3 * 0.4, 1.1
    p = sigmoid(gap)  # people prefer the first with this chance, its main reward being `gap` above the other's

    def expected(delta):
        return dpo.noisy_modpo_loss(delta, 0.0, beta, main, margin, p)

    both = p * dpo.modpo_loss(0.4, 0.0, beta, main, margin) + (1 - p) * dpo.modpo_loss(0.0, 0.4, beta, main, -margin)
    assert expected(0.4) == pytest.approx(float(both), rel=1e-6)
    delta = (main * gap + margin) / beta
    assert abs(jax.grad(expected)(delta)) < 1e-6
    assert abs(jax.grad(expected)(delta + 0.5)) > 1e-3


def test_pairs_are_the_best_and_the_worst_and_ties_are_none():
    score = jnp.array([[0.1, 0.9, 0.5], [2.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    best, worst, proper = dpo.best_and_worst(score)
    assert best[:2].tolist() == [1, 0] and worst[:2].tolist() == [0, 1] and proper.tolist() == [True, True, False]
    np.testing.assert_allclose(dpo.take(score[..., None], best)[:2, 0], [0.9, 2.0])
    assert dpo.pair_mean(jnp.array([1.0, 3.0, 100.0]), proper) == 2.0
