"""MODPO (arXiv 2310.03708): one policy per preference, by DPO with the other objectives as margins.

The objective with the largest weight labels the pairs, the others enter the loss as margins. The original fixes which
objective labels, and divides by a weight that may be small. A pair is the best and the worst of a member's own fresh
candidates by the weighted sum; the original has a fixed data set of people's pairs. Margins are the rewards themselves,
already computed in scoring; the original computes an implicit reward of a second model again at every step.

The loss assumes noisy labels: its minimum is the weighted sum of rewards if labels follow the Bradley–Terry model of the
main reward. A pair therefore enters in both orders, each with the probability under that model. If the better answer were
always chosen, the main reward would count without bound and the margins not at all.

Letters: B prompts, N candidates, T response tokens, E members, K objectives.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_collections

from meal_jax.baselines import dpo, family
from meal_jax.meal import step as meal
from meal_jax.meal.step import Setup
from meal_jax.pareto import front


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A policy that reads no preference."""
    c = config.copy_and_resolve_references()
    c.meal.net = c.meal.adapt = False
    c.conditioning.kind = "none"
    if c.dpo.divisions is None:
        c.dpo.divisions = c.eval.divisions
    if c.dpo.candidates is None:
        c.dpo.candidates = max(2, c.meal.candidates // grid_size(c))
    return c


def grid_size(config: ml_collections.ConfigDict) -> int:
    """The number of members: one per preference of the lattice."""
    return len(front.grid(len(config.objectives), config.dpo.divisions))


def init(setup: Setup, theta, key: jax.Array) -> family.FamilyState:
    """One member per preference of the grid."""
    preferences = jnp.asarray(front.grid(len(setup.objectives), setup.options.divisions))
    return family.init({"policy": theta, "opt": setup.policy_tx.init(theta)}, preferences, key)


def log_ratio(setup, frozen, theta, batch, w, responses, reference, dropout_key=None) -> jax.Array:
    """Δ [B, N] of whole responses [B, N, T], from π_ref's hidden states [B, N, T, D]; the policy reads w [B, N, K]."""
    token, _ = meal.read(setup, theta, frozen, batch, w, responses.tokens, dropout_key=dropout_key)
    ref = meal.read_reference(setup, frozen, reference, responses.tokens)
    return jnp.sum((token.logp - ref) * responses.mask, axis=-1)


def learn(setup, frozen, batch, member, w, key, responses, r, reference):
    """`family.Learn`: `epochs` updates on the step's pairs."""
    o = setup.options
    main = jnp.argmax(w)
    best, worst, proper = dpo.best_and_worst(r @ w)
    others = jnp.where(jnp.arange(w.shape[0]) == main, 0.0, w)
    gap = dpo.take(r, best) - dpo.take(r, worst)  # [B, K]
    right, margin = jax.nn.sigmoid(gap[:, main]), gap @ others

    def pick(x):
        return jnp.stack([dpo.take(x, best), dpo.take(x, worst)], axis=1)

    pair, pair_reference = jax.tree.map(pick, (responses, reference))
    unused = jnp.zeros((*pair.ended.shape, w.shape[0]))

    def loss(theta, key):
        first, second = log_ratio(setup, frozen, theta, batch, unused, pair, pair_reference, key).T
        return dpo.pair_mean(dpo.noisy_modpo_loss(first, second, o.beta, w[main], margin, right), proper)

    def descend(carry, key):
        theta, opt = carry
        theta, opt, value, norm = family.descend(setup, loss, theta, opt, key)
        return (theta, opt), (value, norm)

    (theta, opt), (values, norms) = jax.lax.scan(
        descend, (member["policy"], member["opt"]), jax.random.split(key, o.epochs)
    )
    return {"policy": theta, "opt": opt}, {"loss/base": jnp.mean(values), "grad_norm/policy": norms[-1]}


rollout = family.rollout
update = functools.partial(family.update, learn)
answer = family.answer_nearest
