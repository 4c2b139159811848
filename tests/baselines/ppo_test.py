"""PPO's pieces against plain loops, and the whole of it on a bandit whose optimum is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.baselines import ppo
from meal_jax.testing import choices

MASK = np.array([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)


def plain_gae(rewards, values, gamma, lam):
    """By the definition: A_t = Σ_l (γλ)^l δ_{t+l} over the tokens that there are."""
    length = len(rewards)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, length)) for t in range(length)]


def test_gae_is_the_discounted_sum_of_errors_over_a_responses_own_tokens():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 5)).astype(np.float32)  # junk after the end too
    out = ppo.gae(jnp.array(rewards), jnp.array(values), MASK, 0.9, 0.7)
    for row, real in enumerate(MASK.sum(1)):
        expected = plain_gae(rewards[row, :real], values[row, :real], 0.9, 0.7)
        np.testing.assert_allclose(out.advantage[row, :real], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out.value_target[row, :real], expected + values[row, :real], rtol=1e-5, atol=1e-6)
        assert not np.any(np.asarray(out.advantage[row, real:]))


def test_the_reward_comes_with_the_last_token_and_the_divergence_with_each():
    logp, ref = np.random.default_rng(1).normal(size=(2, 3, 5))
    out = np.asarray(ppo.token_rewards(jnp.array([1.0, 2.0, 3.0]), logp, ref, MASK, 0.1))
    expected = np.where(MASK, -0.1 * (logp - ref), 0.0)
    for row, real in enumerate(MASK.sum(1)):
        expected[row, real - 1] += row + 1
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_leave_one_out_has_no_gain_on_average():
    rewards = np.random.default_rng(2).normal(size=(1, 3, 5)) * MASK
    out = np.asarray(ppo.leave_one_out(jnp.array(rewards), MASK[None]))[0, :, 0]
    total = rewards[0].sum(1)
    np.testing.assert_allclose(out, [total[i] - np.delete(total, i).mean() for i in range(3)], rtol=1e-5)


def test_the_clip_takes_the_gradient_where_a_ratio_has_gone_far_enough():
    grad = jax.grad(lambda logp, gain: ppo.policy_loss(logp, 0.0, gain, jnp.ones((), bool), 0.2))
    assert grad(0.5, 1.0) == 0 and grad(-0.5, -1.0) == 0  # already further than it should
    assert grad(0.5, -1.0) > 0 and grad(-0.5, 1.0) < 0  # the wrong way: pulled back
    assert grad(0.0, 1.0) == -1.0


def test_the_value_loss_is_pessimistic_about_large_moves():
    mask = jnp.ones((), bool)
    assert ppo.value_loss(1.0, 0.0, 1.0, mask, 0.2) == pytest.approx(0.5 * 0.8**2)
    assert ppo.value_loss(0.1, 0.0, 1.0, mask, 0.2) == pytest.approx(0.5 * 0.9**2)


def test_the_coefficient_follows_the_measured_divergence():
    kl = jnp.float32(0.1)
    assert ppo.next_kl(kl, 9.0, 3.0, 100.0, 10) == pytest.approx(0.1 * (1 + 0.2 * 0.1))  # clipped at 0.2
    assert ppo.next_kl(kl, 2.7, 3.0, 100.0, 10) == pytest.approx(0.1 * (1 - 0.1 * 0.1))
    assert ppo.next_kl(kl, 9.0, None, 100.0, 10) == kl


@pytest.mark.parametrize("estimator", ppo.ESTIMATORS)
def test_on_a_bandit_it_finds_the_tilted_reference(estimator):
    """One token, one prompt: the optimum of E[R] − κ KL(π ‖ π_ref) is π_ref exp(R / κ), normalised."""
    o = ppo.PpoConfig(**choices(ppo.PpoConfig, "ppo", estimator=estimator, kl=0.5, candidates=4))
    reward, reference = jnp.array([0.0, 0.6, 1.0, 0.2]), jax.nn.log_softmax(jnp.array([0.5, 0.0, -1.0, 0.2]))
    optimum = jax.nn.softmax(reference + reward / o.kl)
    mask = jnp.ones((1, 512, 1), bool)

    def step(carry, key):
        logits, value = carry
        log_pi = jax.nn.log_softmax(logits)
        token = jax.random.categorical(key, logits, shape=mask.shape)
        old = log_pi[token]
        rewards = ppo.token_rewards(reward[token[..., 0]], old, reference[token], mask, o.kl)
        now = jnp.full(mask.shape, value)
        data = ppo.estimate(rewards, now, mask, o)

        def loss(logits, value):
            policy = ppo.policy_loss(jax.nn.log_softmax(logits)[token], old, data.advantage, mask, o.clip)
            return policy + ppo.value_loss(jnp.full(mask.shape, value), now, data.value_target, mask, o.value_clip)

        by_logits, by_value = jax.grad(loss, argnums=(0, 1))(logits, value)
        return (logits - 0.02 * by_logits, value - 0.1 * by_value), None

    start = (reference, jnp.zeros(()))
    (logits, _), _ = jax.jit(functools.partial(jax.lax.scan, step))(start, jax.random.split(jax.random.key(0), 3000))
    # It ends 0.0016 away; the reference is 0.22 from the optimum, exp(R / κ) without the reference 0.27.
    np.testing.assert_allclose(jax.nn.softmax(logits), optimum, atol=0.01)


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="estimator='gea' is not one of gae, rloo"):
        ppo.PpoConfig(**choices(ppo.PpoConfig, "ppo", estimator="gea"))
    with pytest.raises(ValueError, match="candidates >= 2"):
        ppo.PpoConfig(**choices(ppo.PpoConfig, "ppo", estimator="rloo", candidates=1))
    with pytest.raises(ValueError, match="must be above 0"):
        ppo.PpoConfig(**choices(ppo.PpoConfig, "ppo", kl=0.0))
