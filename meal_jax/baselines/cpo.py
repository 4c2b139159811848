"""Controllable preference optimisation (CPO, arXiv 2402.19085): target scores in the prompt, by SFT and then by DPO.

    CPSFT   fine-tuning on the starting policy's answers, each under the scores that it obtained
    CDPO    a prompt's candidates all answer under the same targets t; R(y) = − λ Σ_{k controlled} |s_k(y) − t_k| +
            Σ_{k free} s_k(y) ranks them; best and worst form a pair under those targets

As in `ric`, scores s are positions between low and high, here two standard deviations on either side of the running mean. One
objective, drawn with the targets, is controlled; the target of every free one is high. π_ref of the DPO is the policy
at the end of the first stage.

Letters: B prompts, N candidates, K objectives, T response tokens.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from meal_jax.baselines import dpo, family, ric
from meal_jax.meal import step as meal
from meal_jax.meal.bilevel import token_loss
from meal_jax.meal.normalise import RunningStats, absorb, init_stats
from meal_jax.meal.step import Batch, Frozen, Rollout, Scores, Setup
from meal_jax.rollout.sampling import Sampling

PyTree = Any
SPREAD = 2.0  # standard deviations from the mean to low and to high


@flax.struct.dataclass
class CpoState:
    """Everything that training changes: as in `meal.step.State`, without weight-net; `anchor` is the first stage's θ."""

    step: jax.Array
    policy: PyTree
    policy_opt: PyTree
    anchor: PyTree
    rewards: RunningStats
    key: jax.Array


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Neither weight-net nor adaptation; by default the first stage is half of the run.

    Raises:
      ValueError: one candidate a prompt, of which no pair can be made.
    """
    c = config.copy_and_resolve_references()
    c.meal.net = c.meal.adapt = False
    if c.dpo.sft_steps is None:
        c.dpo.sft_steps = c.steps // 2
    if c.meal.candidates < 2:
        raise ValueError(
            f"config.meal.candidates={c.meal.candidates} must be at least 2 for CPO: its pairs are of a prompt's candidates."
        )
    c.dpo.candidates = c.meal.candidates
    return c


def init(setup: Setup, theta: PyTree, key: jax.Array) -> CpoState:
    """A state at step 0."""
    copy = jax.tree.map(jnp.copy, theta)  # the state is donated: it must not hold a buffer twice
    k = len(setup.objectives)
    return CpoState(jnp.zeros((), jnp.int32), theta, setup.policy_tx.init(theta), copy, init_stats(k), key)


def rollout(setup: Setup, state: CpoState, frozen: Frozen, batch: Batch) -> Rollout:
    """CPSFT: the starting policy answers. CDPO: the policy answers under targets that a prompt's candidates share."""
    sample_key, target_key = meal.step_keys(state, 2)
    size, n, k = batch.tokens.shape[0], setup.meal.candidates, len(setup.objectives)
    targets = ric.sample_targets(target_key, size, jnp.zeros(k), jnp.ones(k))
    preferences = jnp.broadcast_to(targets[:, None], (size, n, k))
    responses = jax.lax.cond(
        state.step < setup.options.sft_steps,
        lambda: family.respond_as_base(setup, frozen, batch, sample_key, n),
        lambda: (
            meal.respond(setup, state.policy, None, frozen, batch, preferences, sample_key, setup.sampling).responses
        ),
    )
    return Rollout(jnp.full((size, n, k), 1.0 / k), preferences, None, responses)


def targeted(s: jax.Array, t: jax.Array, lam: float) -> jax.Array:
    """R [...] of scores s for targets t, both [..., K] positions; objectives with target 1 are free, others controlled."""
    free = t >= 1.0
    return jnp.sum(jnp.where(free, s, -lam * jnp.abs(s - t)), axis=-1)


def update(
    setup: Setup, state: CpoState, frozen: Frozen, batch: Batch, rolled: Rollout, scores: Scores
) -> tuple[CpoState, dict[str, jax.Array]]:
    """Two updates, by SFT in the first stage and by DPO in the second."""
    o = setup.options
    stats = absorb(state.rewards, scores.rewards, setup.meal.stats_window)
    obtained = _position(stats, scores.rewards)
    responses, first = rolled.responses, state.step < o.sft_steps
    best, worst, proper = dpo.best_and_worst(targeted(obtained, rolled.w_hat, o.lam))

    _, _, drop_key = meal.step_keys(state, 3)

    def logp(theta, w, key=None):
        return meal.read(setup, theta, frozen, batch, w, responses.tokens, dropout_key=key)[0].logp * responses.mask

    anchored = jax.lax.cond(
        first, lambda: jnp.zeros(responses.ended.shape), lambda: jnp.sum(logp(state.anchor, rolled.w_hat), axis=-1)
    )

    def loss(theta, key):
        token = logp(theta, jnp.where(first, obtained, rolled.w_hat), key)
        sft = token_loss(token, responses.mask)
        delta = jnp.sum(token, axis=-1) - anchored
        pairs = dpo.dpo_loss(dpo.take(delta, best), dpo.take(delta, worst), o.beta)
        return jnp.where(first, sft, dpo.pair_mean(pairs, proper))

    def descend(carry, key):
        theta, opt = carry
        theta, opt, value, norm = family.descend(setup, loss, theta, opt, key)
        return (theta, opt), (value, norm)

    (theta, opt), (values, norms) = jax.lax.scan(
        descend, (state.policy, state.policy_opt), jax.random.split(drop_key, o.epochs)
    )
    anchor = jax.tree.map(lambda new, old: jnp.where(first, new, old), theta, state.anchor)
    metrics = {"loss/base": jnp.mean(values), "grad_norm/policy": norms[-1]} | meal.describe(
        setup, rolled, scores.rewards
    )
    new = state.replace(step=state.step + 1, policy=theta, policy_opt=opt, anchor=anchor, rewards=stats)
    return new, metrics


def answer(
    setup: Setup, state: CpoState, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """Answers preferences w [B, M, K] under the targets of RiC's l2 map; `w_hat` holds the targets."""
    k = w.shape[-1]
    targets = ric.target_scores(w, jnp.zeros(k), jnp.ones(k), "l2")
    return meal.respond(setup, state.policy, None, frozen, batch, targets, key, sampling)._replace(w=w, pooled=None)


def _position(stats: RunningStats, rewards: jax.Array) -> jax.Array:
    half = SPREAD * jnp.sqrt(stats.var)
    return ric.normalise_scores(rewards, stats.mean - half, stats.mean + half)
