"""Small stand-ins that run in milliseconds: a tiny policy, tiny prompts and a token-level reward, for tests.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meal_jax import config as defaults
from meal_jax.meal.clip import clip_by_global_norm
from meal_jax.meal.step import Batch, Frozen, MealConfig, Setup, State, init_state
from meal_jax.meal.weight_net import WeightNet
from meal_jax.models import lora
from meal_jax.models.policy import Conditioning, Policy, init_params
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.sampling import Sampling

PAD, END, VOCABULARY = 0, 1, 12


class Tiny(NamedTuple):
    """A run in miniature: everything `meal.step` takes."""

    setup: Setup
    state: State
    frozen: Frozen
    batch: Batch


def count_reward(params: Any, batch: Batch, responses, hidden=None) -> jax.Array:
    """Objective k counts token 2 + k, as a share of the response's length: [B, N, K]; `params` is arange(K)."""
    hits = (responses.tokens[..., None] == 2 + params) & responses.mask[..., None]
    return jnp.sum(hits, axis=2) / jnp.maximum(jnp.sum(responses.mask, axis=-1), 1)[..., None]


def choices(kind: type, section: str, **changes: Any) -> dict[str, Any]:
    """Fields of a dataclass of choices, such as MealConfig: the configuration's defaults, and what changes."""
    values = defaults.default()[section]
    return {field.name: values[field.name] for field in dataclasses.fields(kind)} | changes


def tiny(
    *,
    objectives: int = 2,
    batch: int = 4,
    prompt_length: int = 5,
    max_new: int = 6,
    seed: int = 0,
    conditioning: str = "prefix",
    prompt: str = "uniform",
    adapters: lora.Lora | None = None,
    policy_tx: optax.GradientTransformation | None = None,
    sampling: Sampling | None = None,
    chunk: int = 0,
    model: dict[str, Any] | None = None,
    net_features: str = "layer",
    **meal: Any,
) -> Tiny:
    """A policy of 2 layers and width 16 on B left-padded prompts of different lengths; `meal` are MealConfig fields."""
    sizes = {"vocab_size": VOCABULARY, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "hidden": 24}
    config = TransformerConfig(**(sizes | (model or {})), lora=adapters)
    table = tuple(tuple((3 + i % 9, 2 + k) for i in range(11)) for k in range(objectives))
    policy = Policy(
        config, Conditioning(conditioning, objectives, slots=2, hidden=8, table=table, tail=(3,), prompt=prompt)
    )
    base = Policy(TransformerConfig(**(sizes | (model or {}))), Conditioning("none", objectives, tail=(3,)))
    meal_config = MealConfig(**choices(MealConfig, "meal", lam=1.0, tau=1.0, candidates=4) | meal)
    setup = Setup(
        policy=policy,
        base=base if meal_config.beta else None,
        net=WeightNet(hidden=8, features=net_features),
        policy_tx=policy_tx or optax.chain(clip_by_global_norm(1.0), optax.adamw(1e-2, eps_root=1e-12)),
        net_tx=optax.adam(1e-2),
        meal=meal_config,
        sampling=sampling or Sampling(),
        max_new=max_new,
        end=END,
        pad=PAD,
        forbidden=jnp.arange(VOCABULARY) == PAD,
        objectives=tuple(f"objective{k}" for k in range(objectives)),
        reward=count_reward,
        keep_reference=meal_config.beta > 0,
        chunk=chunk,
    )
    key = jax.random.key(seed)
    lengths = 1 + jnp.arange(batch) % prompt_length
    mask = jnp.arange(prompt_length) >= prompt_length - lengths[:, None]
    tokens = jax.random.randint(jax.random.fold_in(key, 1), (batch, prompt_length), 2, VOCABULARY) * mask
    rows = Batch(tokens.astype(jnp.int32), mask, jnp.arange(batch, dtype=jnp.int32) + 7)
    params = jax.jit(init_params, static_argnums=0)(policy, key)
    theta, frozen = lora.split(params, lora.is_adapter) if adapters else (params, {})
    base_params = jax.tree.map(jnp.copy, lora.split(params, lambda path: not lora.is_adapter(path))[0])
    return Tiny(
        setup,
        init_state(setup, theta, jax.random.fold_in(key, 2)),
        Frozen(frozen, base_params if meal_config.beta else None, jnp.arange(objectives)),
        rows,
    )
