"""Rewarded Soups (arXiv 2306.04488): one PPO policy per objective, their weights interpolated by the preference.

With adapters there are two ways to interpolate (`config.ppo.soup`): "factor" averages A and B each, as the original code
does, (Σ w_k A_k)(Σ w_k B_k); "merged" averages the weights' changes, Σ w_k A_k B_k, as the paper's formula says and RiC's
code does. It is computed here by stacking the factors along the rank, without a merged matrix. Without adapters the two are
one.

MOD (arXiv 2406.18853) mixes the same members' distributions at each token instead, Σ w_k log π_k: `answer_mixed`.

Letters: B prompts, M preferences, K objectives and members, D, F widths of a layer, R rank.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from meal_jax.baselines import family, morlhf
from meal_jax.meal import step as meal
from meal_jax.meal.step import Batch, Frozen, Rollout, Setup
from meal_jax.models.lora import merge
from meal_jax.models.policy import Policy
from meal_jax.rollout.decode import decode_mixture, sample_keys
from meal_jax.rollout.sampling import Sampling

PyTree = Any

configure = functools.partial(morlhf.configure, members=lambda config: len(config.objectives))
rollout = morlhf.rollout
update = morlhf.update


def init(setup: Setup, theta: PyTree, key: jax.Array) -> family.FamilyState:
    """One member for each objective alone."""
    return family.init(morlhf.new_member(setup, theta), jnp.eye(len(setup.objectives)), key)


def soup(thetas: PyTree, w: jax.Array, space: str) -> PyTree:
    """Interpolates stacked leaves [K, ...] by one preference.

    Args:
      thetas: trainable leaves of the K members.
      w: [K].
      space: "factor" or "merged". In "merged" adapters come out K times as wide, A [..., D, K R] and B [..., K R, F].

    Returns:
      Leaves of one policy; see `widened` for the module that takes those of "merged".
    """

    def interpolate(path, x):
        if space == "factor" or not path.endswith(("lora_a", "lora_b")):
            return jnp.tensordot(w, x, axes=1)
        if path.endswith("lora_a"):
            return jnp.concatenate(list(x * w.reshape(-1, *[1] * (x.ndim - 1))), axis=-1)
        return jnp.concatenate(list(x), axis=-2)

    flat = traverse_util.flatten_dict(thetas, sep="/")
    return traverse_util.unflatten_dict({path: interpolate(path, x) for path, x in flat.items()}, sep="/")


def widened(setup: Setup) -> Setup:
    """The setup whose adapters have K times the rank, at the same scale alpha / rank."""
    config, k = setup.policy.config, len(setup.objectives)
    lora = dataclasses.replace(config.lora, rank=k * config.lora.rank, alpha=k * config.lora.alpha)
    policy = Policy(dataclasses.replace(config, lora=lora), setup.policy.conditioning)
    return dataclasses.replace(setup, policy=policy)


def answer(
    setup: Setup,
    state: family.FamilyState,
    frozen: Frozen,
    batch: Batch,
    w: jax.Array,
    key: jax.Array,
    sampling: Sampling,
) -> Rollout:
    """Answers w [B, M, K], the same for every prompt of a batch, by the soups of those preferences."""
    space = setup.options.soup
    thetas = jax.vmap(lambda weights: soup(state.members["policy"], weights, space))(w[0])
    if space == "merged" and setup.policy.config.lora is not None:
        setup = widened(setup)
    return Rollout(w, w, None, family.respond_each(setup, thetas, frozen, batch, key, 1, sampling))


def answer_mixed(
    setup: Setup,
    state: family.FamilyState,
    frozen: Frozen,
    batch: Batch,
    w: jax.Array,
    key: jax.Array,
    sampling: Sampling,
) -> Rollout:
    """MOD: answers w [B, M, K] with the members' log-probabilities mixed by w at each token; K forward passes a token."""
    models = []
    for k in range(len(setup.objectives)):
        params = merge(jax.tree.map(lambda x, k=k: x[k], state.members["policy"]), frozen.policy)
        models.append((setup.policy, params))

    def run(rows: tuple[Batch, jax.Array]):
        batch, w = rows
        return decode_mixture(
            models, w, batch.tokens, batch.mask, w, sample_keys(key, batch.id, w.shape[1]), max_new=setup.max_new,
            sampling=sampling, end=setup.end, pad=setup.pad, forbidden=setup.forbidden,
        )  # fmt: skip

    return Rollout(w, w, None, meal.in_pieces(run, (batch, w), setup.micro.rollout))
