"""MORLHF: PPO on the linear scalarisation Σ_k w_k r_k, one policy per preference w of a grid.

At evaluation the policy of the nearest trained preference answers.

Letters: B prompts, N candidates, T response tokens, D width, E members, K objectives.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_collections
import optax

from meal_jax.baselines import family, ppo
from meal_jax.meal import step as meal
from meal_jax.meal.step import Setup
from meal_jax.pareto import front


def grid_size(config: ml_collections.ConfigDict) -> int:
    """The number of members: one per preference of the lattice."""
    return len(front.grid(len(config.objectives), config.ppo.divisions))


def configure(config: ml_collections.ConfigDict, members=grid_size) -> ml_collections.ConfigDict:
    """A policy that reads no preference.

    The answers per prompt are about as many as Meal's, divided evenly over the members.
    """
    c = config.copy_and_resolve_references()
    c.meal.net = c.meal.adapt = False
    c.conditioning.kind = "none"
    if c.ppo.divisions is None:
        c.ppo.divisions = c.eval.divisions
    if c.ppo.candidates is None:
        lower_bound = 2 if c.ppo.estimator == "rloo" else 1
        c.ppo.candidates = max(lower_bound, c.meal.candidates // members(c))
    if c.batch_size % c.ppo.minibatches:
        raise ValueError(
            f"config.ppo.minibatches={c.ppo.minibatches} does not divide config.batch_size={c.batch_size}."
        )
    return c


def new_member(setup: Setup, theta) -> dict:
    """A policy with a value head that predicts 0, its optimizer, and the KL coefficient κ."""
    width = setup.policy.config.width
    value = {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}
    opt = setup.policy_tx.init({"policy": theta, "value": value})
    return {"policy": theta, "value": value, "opt": opt, "kl": jnp.float32(setup.options.kl)}


def init(setup: Setup, theta, key: jax.Array) -> family.FamilyState:
    """One member per preference of the grid."""
    preferences = jnp.asarray(front.grid(len(setup.objectives), setup.options.divisions))
    return family.init(new_member(setup, theta), preferences, key)


def learn(setup, frozen, batch, member, w, key, responses, r, reference):
    """`family.Learn` by PPO (or RLOO): `epochs` passes over the prompts in `minibatches` parts."""
    o, mask = setup.options, responses.mask
    temperature = setup.sampling.temperature

    def read(trained, batch, responses):
        """log π [B, N, T] and V [B, N, T]."""
        unused = jnp.zeros((*responses.tokens.shape[:2], w.shape[0]))
        token, hidden = meal.read(
            setup, trained["policy"], frozen, batch, unused, responses.tokens, temperature=temperature
        )
        return token.logp, hidden.astype(jnp.float32) @ trained["value"]["kernel"] + trained["value"]["bias"]

    ref_logp = meal.read_reference(setup, frozen, reference, responses.tokens, temperature)
    rewards = ppo.token_rewards(r @ w, responses.logp, ref_logp, mask, member["kl"])
    trained = {"policy": member["policy"], "value": member["value"]}
    old_value = read(trained, batch, responses)[1] if o.estimator == "gae" else jnp.zeros(mask.shape)
    estimate = ppo.estimate(rewards, old_value, mask, o)
    data = (batch, responses, estimate, old_value)

    def loss(trained, data):
        batch, responses, estimate, old_value = data
        logp, value = read(trained, batch, responses)
        policy = ppo.policy_loss(logp, responses.logp, estimate.advantage, responses.mask, o.clip)
        value_error = ppo.value_loss(value, old_value, estimate.value_target, responses.mask, o.value_clip)
        weight = o.value_coef if o.estimator == "gae" else 0.0
        return policy + weight * value_error, (policy, value_error)

    def descend(carry, rows):
        trained, opt = carry
        grads, parts = jax.grad(loss, has_aux=True)(trained, jax.tree.map(lambda x: x[rows], data))
        updates, opt = setup.policy_tx.update(grads, opt, trained)
        return (optax.apply_updates(trained, updates), opt), (*parts, optax.tree.norm(grads["policy"]))

    prompts = batch.tokens.shape[0]
    orders = jax.vmap(lambda k: jax.random.permutation(k, prompts))(jax.random.split(key, o.epochs))
    rows = orders.reshape(o.epochs * o.minibatches, prompts // o.minibatches)
    (trained, opt), (policy_loss, value_loss, norm) = jax.lax.scan(descend, (trained, member["opt"]), rows)
    measured = jnp.mean(jnp.sum(jnp.where(mask, responses.logp - ref_logp, 0.0), axis=-1))
    kl = ppo.next_kl(member["kl"], measured, o.kl_target, o.kl_horizon, responses.ended.size)
    metrics = {
        "loss/policy": jnp.mean(policy_loss),
        "loss/value": jnp.mean(value_loss),
        "grad_norm/policy": norm[-1],
        "ppo/kl": measured,
        "ppo/kl_coefficient": kl,
    }
    return {**trained, "opt": opt, "kl": kl}, metrics


rollout = family.rollout
update = functools.partial(family.update, learn)
answer = family.answer_nearest
