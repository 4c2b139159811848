"""Rewards-in-Context (RiC, arXiv 2402.10207): the policy reads the scores that its answer should get.

    offline   the starting policy answers without targets; the policy is fine-tuned on these answers, each under the scores
              that it obtained (hindsight: an answer always fits its own scores)
    online    the policy answers targets near the front; answers are scored and relabelled with the scores obtained. It is
              fine-tuned on those above a quantile and on the offline answers that pass the same filter
    answering a preference is mapped to scores between the low and high quantiles of the data

Two things differ from the original code on purpose. Scores reach the policy as positions between those quantiles, by the
same conditioning as every method's preferences, not as z-scores rounded to a digit: their meaning follows the data as the
policy improves. And the two stages are steps of one jitted function with a buffer of answers in its state; updates and
fresh answers per step are as many as other methods have.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens, R rows of the buffer.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections

from meal_jax.baselines import family
from meal_jax.meal import step as meal
from meal_jax.meal.bilevel import token_loss
from meal_jax.meal.normalise import RunningStats, absorb, init_stats
from meal_jax.meal.step import Batch, Frozen, Rollout, Scores, Setup
from meal_jax.rollout.decode import Responses
from meal_jax.rollout.sampling import Sampling

PyTree = Any
MAPS = ("l2", "linf", "linear")


@dataclasses.dataclass(frozen=True)
class RicConfig:
    """The choices of RiC; the fields are explained in `meal_jax/config.py`."""

    offline_steps: int
    buffer: int
    keep_quantile: float
    low_quantile: float
    high_quantile: float
    map: str

    def __post_init__(self):
        if self.map not in MAPS:
            raise ValueError(f"config.ric.map={self.map!r} is not one of {', '.join(MAPS)}.")
        if not 0 <= self.low_quantile < self.high_quantile <= 1 or not 0 <= self.keep_quantile < 1:
            raise ValueError("config.ric needs 0 <= low_quantile < high_quantile <= 1 and 0 <= keep_quantile < 1.")


class Rows(NamedTuple):
    """Scored answers: prompts [R, S], responses [R, T], raw rewards [R, K], online [R] (not by the starting policy), and
    how many rows were ever written (a scalar)."""

    tokens: jax.Array
    mask: jax.Array
    response: jax.Array
    response_mask: jax.Array
    rewards: jax.Array
    online: jax.Array
    written: jax.Array


@flax.struct.dataclass
class RicState:
    """Everything that training changes: as in `meal.step.State`, without a weight-net, with a ring buffer of answers."""

    step: jax.Array
    policy: PyTree
    policy_opt: PyTree
    rewards: RunningStats
    buffer: Rows
    key: jax.Array


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Neither weight-net nor adaptation; by default the offline stage is half of the run."""
    c = config.copy_and_resolve_references()
    c.meal.net = c.meal.adapt = False
    if c.ric.offline_steps is None:
        c.ric.offline_steps = c.steps // 2
    if c.ric.buffer < c.batch_size * c.meal.candidates:
        raise ValueError(
            f"config.ric.buffer={c.ric.buffer} does not hold the {c.batch_size * c.meal.candidates} answers of one step."
        )
    return c


def init(setup: Setup, theta: PyTree, key: jax.Array) -> RicState:
    """A state at step 0 with an empty buffer."""
    o, k = setup.options, len(setup.objectives)
    rows = Rows(
        jnp.zeros((o.buffer, setup.prompt_length), jnp.int32),
        jnp.zeros((o.buffer, setup.prompt_length), bool),
        jnp.zeros((o.buffer, setup.max_new), jnp.int32),
        jnp.zeros((o.buffer, setup.max_new), bool),
        jnp.zeros((o.buffer, k), jnp.float32),
        jnp.zeros(o.buffer, bool),
        jnp.zeros((), jnp.int32),
    )
    return RicState(jnp.zeros((), jnp.int32), theta, setup.policy_tx.init(theta), init_stats(k), rows, key)


def target_scores(w: jax.Array, low: jax.Array, high: jax.Array, kind: str) -> jax.Array:
    """A preference as target scores, RiC's `map_rewards_from_preference`.

    l2: w_k / ‖w‖₂ of the way from low to high; linf: high for the largest weight, min(K w_k, 1) of the way for the
    others; linear: w_k of the way.

    Args:
      w: [..., K].
      low, high: [K], quantiles of the observed scores.
      kind: one of MAPS.

    Returns:
      [..., K].
    """
    if kind == "l2":
        share = w / jnp.linalg.norm(w, axis=-1, keepdims=True)
    elif kind == "linf":
        is_largest = w >= jnp.max(w, axis=-1, keepdims=True)
        share = jnp.where(is_largest, 1.0, jnp.minimum(w.shape[-1] * w, 1.0))
    else:
        share = w
    return share * (high - low) + low


def normalise_scores(scores: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Scores [..., K] as the policy reads them: the position between low and high, 0 to 1."""
    return jnp.clip((scores - low) / jnp.maximum(high - low, 1e-6), 0.0, 1.0)


def sample_targets(key: jax.Array, rows: int, low: jax.Array, high: jax.Array) -> jax.Array:
    """Target scores near the front [rows, K]: drawn uniformly, then all but each row's smallest position are set to high."""
    share = jax.random.uniform(key, (rows, low.shape[0]))
    share = jnp.where(share <= jnp.min(share, axis=-1, keepdims=True), share, 1.0)
    return share * (high - low) + low


def quantile(x: jax.Array, valid: jax.Array, q: float) -> jax.Array:
    """The q-quantile [K] of the valid rows of x [R, K]; 0 if there is none."""
    value = jnp.nanquantile(jnp.where(valid[:, None], x, jnp.nan), q, axis=0)
    return jnp.where(jnp.any(valid), value, 0.0)


def passing(rows: Rows, q: float) -> jax.Array:
    """[R] bool: rows with at least one score not below its q-quantile, among online or among offline answers."""
    valid = _valid(rows)

    def passes(kind):
        threshold = quantile(rows.rewards, valid & kind, q)
        return valid & kind & jnp.any(rows.rewards >= threshold, axis=-1)

    return passes(rows.online) | passes(~rows.online)


def rollout(setup: Setup, state: RicState, frozen: Frozen, batch: Batch) -> Rollout:
    """Offline: the starting policy answers. Online: the policy answers targets near the front."""
    sample_key, target_key, _ = meal.step_keys(state, 3)
    size, n, k = batch.tokens.shape[0], setup.meal.candidates, len(setup.objectives)
    low, high = _range(setup, state.buffer)
    desired = normalise_scores(sample_targets(target_key, size * n, low, high), low, high).reshape(size, n, k)

    def offline():
        return family.respond_as_base(setup, frozen, batch, sample_key, n)

    def online():
        return meal.respond(setup, state.policy, None, frozen, batch, desired, sample_key, setup.sampling).responses

    responses = jax.lax.cond(state.step < setup.options.offline_steps, offline, online)
    return Rollout(jnp.full((size, n, k), 1.0 / k), desired, None, responses)


def update(
    setup: Setup, state: RicState, frozen: Frozen, batch: Batch, rolled: Rollout, scores: Scores
) -> tuple[RicState, dict[str, jax.Array]]:
    """Writes the answers to the buffer; two updates on rows of the buffer, each under the scores that it obtained."""
    o = setup.options
    online = state.step >= o.offline_steps
    rows = _write(state.buffer, batch, rolled.responses, scores.rewards, online)
    low, high = _range(setup, rows)
    valid = _valid(rows)
    chosen = jnp.where(online, passing(rows, o.keep_quantile), valid)
    _, _, row_key, drop_key = meal.step_keys(state, 4)
    each = max(1, batch.tokens.shape[0] * setup.meal.candidates // 2)  # as many rows as half a batch of other methods
    picked = jax.random.categorical(row_key, jnp.where(chosen, 0.0, -jnp.inf), shape=(2, each))

    def loss(theta, part: Rows, key: jax.Array):
        w = normalise_scores(part.rewards, low, high)[:, None]
        token, _ = meal.read(setup, theta, frozen, part, w, part.response[:, None], dropout_key=key)
        return token_loss(token.logp, part.response_mask[:, None])

    def descend(carry, given):
        (theta, opt), (index, key) = carry, given
        part = Rows(*(field[index] for field in rows[:-1]), rows.written)
        theta, opt, value, norm = family.descend(setup, loss, theta, opt, part, key)
        return (theta, opt), (value, norm)

    (theta, opt), (losses, norms) = jax.lax.scan(
        descend, (state.policy, state.policy_opt), (picked, jax.random.split(drop_key, 2))
    )
    metrics = {
        "loss/base": jnp.mean(losses),
        "grad_norm/policy": norms[-1],
        "ric/kept": jnp.sum(chosen) / jnp.maximum(jnp.sum(valid), 1),
    }
    for k, name in enumerate(setup.objectives):
        metrics[f"ric/{name}/low"], metrics[f"ric/{name}/high"] = low[k], high[k]
    metrics |= meal.describe(setup, rolled, scores.rewards)
    stats = absorb(state.rewards, scores.rewards, setup.meal.stats_window)
    new = state.replace(step=state.step + 1, policy=theta, policy_opt=opt, rewards=stats, buffer=rows)
    return new, metrics


def answer(
    setup: Setup, state: RicState, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """Answers preferences w [B, M, K] under the target scores that they map to; `w_hat` holds these as read."""
    low, high = _range(setup, state.buffer)
    targets = normalise_scores(target_scores(w, low, high, setup.options.map), low, high)
    answered = meal.respond(setup, state.policy, None, frozen, batch, targets, key, sampling)
    return answered._replace(w=w, pooled=None)


def _valid(rows: Rows) -> jax.Array:
    return jnp.arange(rows.online.shape[0]) < rows.written


def _range(setup: Setup, rows: Rows) -> tuple[jax.Array, jax.Array]:
    valid = _valid(rows)
    return quantile(rows.rewards, valid, setup.options.low_quantile), quantile(
        rows.rewards, valid, setup.options.high_quantile
    )


def _write(rows: Rows, batch: Batch, responses: Responses, rewards: jax.Array, online: jax.Array) -> Rows:
    """Appends B · N answers; a full buffer loses its oldest ones. Prompts cut to a shorter bucket are padded again."""
    size, n = responses.ended.shape
    capacity, width = rows.tokens.shape
    index = (rows.written + jnp.arange(size * n)) % capacity

    def flat(x):
        return x.reshape(size * n, *x.shape[2:])

    def per_prompt(x):
        return jnp.repeat(jnp.pad(x, ((0, 0), (width - x.shape[1], 0))), n, axis=0)

    new = (
        per_prompt(batch.tokens),
        per_prompt(batch.mask),
        flat(responses.tokens),
        flat(responses.mask),
        flat(rewards),
        jnp.broadcast_to(online, (size * n,)),
    )
    fields = [old.at[index].set(value) for old, value in zip(rows[:-1], new, strict=True)]
    return Rows(*fields, rows.written + size * n)
