"""Several policies over one frozen base, one for each of E preferences, trained side by side.

Letters: B prompts, N candidates a member, E members, K objectives, M preferences, T response tokens, D width.

The members' trained leaves are stacked, [E, ...], and each function of one policy is `vmap`ped over them: with adapters
the frozen base is read once for all. Responses of all members lie beside each other as candidates [B, E · N, T], member
e's from e · N on, so that scoring is every method's. How a member learns is a function of its own (`Learn`): PPO for
MORLHF and Rewarded Soups, preference pairs for MODPO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from meal_jax.meal import step as meal
from meal_jax.meal.normalise import RunningStats, absorb, init_stats, normalise
from meal_jax.meal.step import Batch, Frozen, Rollout, Scores, Setup
from meal_jax.rollout.decode import Responses
from meal_jax.rollout.sampling import Sampling

PyTree = Any

# (setup, frozen, batch, member, w [K], key, responses [B, N, T], r [B, N, K] normalised, π_ref's hidden states [B, N, T, D])
# → (member, metrics), a member being a `FamilyState.members` without its leading E.
Learn = Callable[..., tuple[PyTree, dict[str, jax.Array]]]


@flax.struct.dataclass
class FamilyState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, steps done.
      members: a dict stacked [E, ...]: "policy" is θ, "opt" the optimizer's state, and what else a member learns.
      preferences: [E, K], what each member serves; never changed.
      rewards: running statistics of the raw rewards.
      key: typed key; a step folds its number into it.
    """

    step: jax.Array
    members: PyTree
    preferences: jax.Array
    rewards: RunningStats
    key: jax.Array


def init(member: PyTree, preferences: jax.Array, key: jax.Array) -> FamilyState:
    """Members that all begin alike, for preferences [E, K]."""
    size = preferences.shape[0]
    members = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], size, axis=0), member)
    preferences = jnp.asarray(preferences, jnp.float32)
    return FamilyState(jnp.zeros((), jnp.int32), members, preferences, init_stats(preferences.shape[1]), key)


def respond_as(
    setup: Setup, theta: PyTree, frozen: Frozen, batch: Batch, key: jax.Array, candidates: int, sampling: Sampling
) -> Responses:
    """Responses [B, N, T] of one policy with trainable leaves θ, which reads no preference."""
    unused = jnp.zeros((batch.tokens.shape[0], candidates, len(setup.objectives)))
    return meal.respond(setup, theta, None, frozen, batch, unused, key, sampling).responses


def respond_as_base(setup: Setup, frozen: Frozen, batch: Batch, key: jax.Array, candidates: int) -> Responses:
    """Responses [B, N, T] of the starting policy π_ref: the data of methods that learn from a fixed source."""
    base = dataclasses.replace(setup, policy=setup.base)
    return respond_as(base, frozen.reference, frozen._replace(policy={}), batch, key, candidates, setup.sampling)


def respond_each(
    setup: Setup, thetas: PyTree, frozen: Frozen, batch: Batch, key: jax.Array, candidates: int, sampling: Sampling
) -> Responses:
    """Responses [B, M · N, T] of M policies with stacked leaves θ [M, ...]."""
    size = jax.tree.leaves(thetas)[0].shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))

    def respond_member(theta, key):
        return respond_as(setup, theta, frozen, batch, key, candidates, sampling)

    return side_by_side(jax.vmap(respond_member)(thetas, keys))


def side_by_side(responses: PyTree) -> PyTree:
    """[M, B, N, ...] to [B, M · N, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), responses)


def per_member(tree: PyTree, members: int) -> PyTree:
    """[B, E · N, ...] to [E, B, N, ...]: the inverse of `side_by_side`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], members, -1, *x.shape[2:]), 1, 0), tree)


def rollout(setup: Setup, state: FamilyState, frozen: Frozen, batch: Batch) -> Rollout:
    """Every member answers every prompt `setup.options.candidates` times."""
    candidates = setup.options.candidates
    sample_key, _ = meal.step_keys(state, 2)
    responses = respond_each(setup, state.members["policy"], frozen, batch, sample_key, candidates, setup.sampling)
    w = jnp.repeat(state.preferences, candidates, axis=0)  # [E · N, K]
    w = jnp.broadcast_to(w, (batch.tokens.shape[0], *w.shape))
    return Rollout(w, w, None, responses)


def update(
    learn: Learn, setup: Setup, state: FamilyState, frozen: Frozen, batch: Batch, rolled: Rollout, scores: Scores
) -> tuple[FamilyState, dict[str, jax.Array]]:
    """Every member learns from its own responses, under its own preference.

    Rewards are normalised by their running statistics first: on raw scales a weight would mean something else for each
    reward model.
    """
    stats = absorb(state.rewards, scores.rewards, setup.meal.stats_window)
    size = state.preferences.shape[0]
    pool = per_member((rolled.responses, normalise(stats, scores.rewards), scores.reference), size)
    _, key = meal.step_keys(state, 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))

    def update_member(member, w, key, member_frozen):
        return learn(setup, frozen, batch, member, w, key, *member_frozen)

    members, metrics = jax.vmap(update_member)(state.members, state.preferences, keys, pool)
    metrics = {name: jnp.mean(value) for name, value in metrics.items()} | meal.describe(setup, rolled, scores.rewards)
    return state.replace(step=state.step + 1, members=members, rewards=stats), metrics


def descend(
    setup: Setup, loss: Callable, theta: PyTree, opt: PyTree, *args
) -> tuple[PyTree, PyTree, jax.Array, jax.Array]:
    """One step of the policy's optimizer on loss(θ, *args): θ, the optimizer's state, the loss and its gradient's norm."""
    value, grads = jax.value_and_grad(loss)(theta, *args)
    updates, opt = setup.policy_tx.update(grads, opt, theta)
    return optax.apply_updates(theta, updates), opt, value, optax.tree.norm(grads)


def answer_nearest(
    setup: Setup, state: FamilyState, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """Answers w [B, M, K], the same for every prompt of a batch, by the members whose preferences are nearest."""
    gap = jnp.sum(jnp.square(w[0, :, None] - state.preferences), axis=-1)  # [M, E]
    member = jnp.argmin(gap, axis=-1)
    thetas = jax.tree.map(lambda x: x[member], state.members["policy"])
    served = jnp.broadcast_to(state.preferences[member], w.shape)
    return Rollout(w, served, None, respond_each(setup, thetas, frozen, batch, key, 1, sampling))
