"""What a run holds fixed, what training changes and what passes between the parts of a step: types, no computation.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens, V vocabulary, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import optax

from meal_jax.meal.normalise import RunningStats
from meal_jax.meal.weight_net import WeightNet
from meal_jax.models.policy import Policy
from meal_jax.rollout.decode import Responses
from meal_jax.rollout.sampling import Sampling
from meal_jax.rollout.weights import AS_STORED, RolloutWeights

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MealConfig:
    """The method's choices; fields and defaults are in `meal_jax/config.py`."""

    lam: float
    tau: float
    accept: str
    meta: str
    hypergradient: str
    rho: float
    beta: float
    candidates: int
    targets: str
    gap: tuple[float, float] | None
    net: bool
    adapt: bool
    rejected: str
    reuse_virtual: bool
    ratio_clip: float
    length_norm: str
    stats_window: float
    baseline: str
    passes: int
    pass_clip: float
    reward_scale: str
    accept_share: float | None
    meta_fraction: float


@dataclasses.dataclass(frozen=True)
class Micro:
    """Prompts at a time, of a rollout, of scoring and of each gradient of an update; None = all."""

    rollout: int | None = None
    score: int | None = None
    gradient: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run holds fixed: modules, optimizers, the rules of sampling and the reward; closed over by the jitted step.

    Attributes:
      policy: π_θ.
      base: the policy without adapters and without a preference, π_ref and the trunk of reward heads; None if unused.
      judge_of_fluency: a pretrained base that is at hand anyway, by which an evaluation measures answers; None if none is.
      net: g_φ.
      policy_tx, net_tx: optimizers of θ and φ.
      meal: the method's choices.
      sampling: how training rollouts are drawn.
      max_new: T.
      end, pad: token ids.
      forbidden: [V] bool, tokens never drawn, or None.
      objectives: names, K of them.
      reward: (frozen reward parameters, Batch, Responses, hidden [B, N, T + 1, D] of `base` or None) → rewards [B, N, K],
        or the columns of those that need no text; hidden[..., t, :] is the base's last hidden state after t response
        tokens.
      reward_reads_base: the reward needs `hidden`.
      keep_reference: scoring keeps π_ref's hidden states, for a KL or for log π_ref.
      chunk: response positions projected to the vocabulary at a time, None for all.
      micro: what is taken a part at a time.
      rollout_weights: how a rollout holds the policy's weights, see `rollout.weights`.
      prompt_length: S, for methods that keep prompts in their state.
      options: a baseline's own choices, a frozen dataclass; None for Meal, which has `meal`.
    """

    policy: Policy
    base: Policy | None
    net: WeightNet
    policy_tx: optax.GradientTransformation
    net_tx: optax.GradientTransformation
    meal: MealConfig
    sampling: Sampling
    max_new: int
    end: int
    pad: int
    forbidden: jax.Array | None
    objectives: tuple[str, ...]
    reward: Callable[..., jax.Array]
    reward_reads_base: bool = False
    keep_reference: bool = False
    chunk: int | None = None
    micro: Micro = Micro()
    rollout_weights: RolloutWeights = AS_STORED
    prompt_length: int = 0
    options: Any = None
    judge_of_fluency: Policy | None = None


@flax.struct.dataclass
class State:
    """Everything that training changes, one pytree; donated to the step and checkpointed whole.

    Attributes:
      step: int32 scalar, steps done.
      policy: θ, the trainable leaves of the policy.
      policy_opt: its optimizer's state.
      net: φ.
      net_opt: its optimizer's state.
      rewards: running statistics of the raw rewards.
      key: typed key; never advanced, a step folds its number into it.
    """

    step: jax.Array
    policy: PyTree
    policy_opt: PyTree
    net: PyTree
    net_opt: PyTree
    rewards: RunningStats
    key: jax.Array


class Frozen(NamedTuple):
    """What training only reads; a separate argument, never donated.

    Attributes:
      policy: the policy's frozen leaves ({} if all are trained).
      base: parameters of `Setup.base` where `policy` is not they: None with adapters, whose frozen leaves are the base, and
        where no base is used.
      reward: parameters of the reward, any pytree.
    """

    policy: PyTree
    base: PyTree
    reward: PyTree

    @property
    def reference(self) -> PyTree:
        """Parameters of `Setup.base`, held once whether or not the policy is made of them."""
        return self.policy if self.base is None else self.base


class Batch(NamedTuple):
    """Left-padded prompts: tokens [B, S] int32, mask [B, S] bool, id [B] int32 (names the row; seeds its samples)."""

    tokens: jax.Array
    mask: jax.Array
    id: jax.Array


class Rollout(NamedTuple):
    """Responses and what they answered: w, ŵ [B, N, K], pooled prompt features [B, D], Responses [B, N, T]."""

    w: jax.Array
    w_hat: jax.Array
    pooled: jax.Array
    responses: Responses


class Scores(NamedTuple):
    """Raw rewards [B, N, K] and π_ref's hidden states [B, N, T, D] (None unless β > 0).

    `score` gives the device's columns; `update` takes all K.
    """

    rewards: jax.Array
    reference: jax.Array | None
