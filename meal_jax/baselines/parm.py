"""PARM (arXiv 2505.06274): a preference-aware autoregressive reward model guides a frozen policy as it decodes.

The reward model π_a is the base with a bilinear adapter of its linear layers (PBLoRA),
    ΔW(w) = s (A_1 W_1 B_1 + A_2 W_2(w) B_2),   W_2(w) = Σ_k w_k W_2k,   s = alpha / r_2,
with A = [A_1 A_2] of ranks r_1 and r_2, and W_1 [r_1, r_1], W_2k [r_2, r_2] small. The preference acts on the r_2 × r_2
matrix alone, so an adapter for a preference is A and [W_1 B_1; W_2(w) B_2]: factors of a plain low-rank layer, one pair
per example's preference, and never a matrix of the layer's size.

It learns from pairs of the base's own answers, `pairs` per prompt and objective, under preferences drawn from a Dirichlet:
    L = Σ_k w_k [− log σ(β (log π_a(y⁺_k | x, w) − log π_a(y⁻_k | x, w)))],
and answers with log π(y_t) = log π_base + log π_a / β_decode + constant.

Letters: B prompts, N candidates, K objectives, M preferences, T response tokens, L layers, D, F widths, R = r_1 + r_2.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from meal_jax.baselines import dpo, family
from meal_jax.meal import step as meal
from meal_jax.meal.normalise import RunningStats, absorb, init_stats
from meal_jax.meal.step import Batch, Frozen, Rollout, Scores, Setup
from meal_jax.models.lora import merge
from meal_jax.rollout.decode import decode_mixture, sample_keys
from meal_jax.rollout.sampling import Sampling

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ParmConfig:
    """The settings of PARM; the fields are explained in `meal_jax/config.py`."""

    r1: int
    r2: int
    alpha: float
    beta: float
    decode_beta: float
    dirichlet: float
    pairs: int

    def __post_init__(self):
        if self.pairs < 1:
            raise ValueError(f"config.parm.pairs={self.pairs} must be at least 1.")
        if self.r1 < 1 or self.r2 < 1 or self.beta <= 0 or self.decode_beta <= 0 or self.dirichlet <= 0:
            raise ValueError(f"config.parm needs r1, r2 >= 1 and beta, decode_beta, dirichlet > 0, not {self}.")


@flax.struct.dataclass
class ParmState:
    """Everything that training changes; `policy` is {"adapter": A and B, "core": {path: {"w1", "w2"}}}."""

    step: jax.Array
    policy: PyTree
    policy_opt: PyTree
    rewards: RunningStats
    key: jax.Array


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adapters of rank r_1 + r_2 at the scale s, and no preference in the prompt."""
    c = config.copy_and_resolve_references()
    c.meal.net = c.meal.adapt = False
    c.conditioning.kind = "none"
    if 2 * c.parm.pairs > c.meal.candidates:
        raise ValueError(
            f"config.parm.pairs={c.parm.pairs} need twice as many of config.meal.candidates={c.meal.candidates}."
        )
    c.policy.lora_rank = c.parm.r1 + c.parm.r2
    c.policy.lora_alpha = c.policy.lora_rank * c.parm.alpha / c.parm.r2
    return c


def init(setup: Setup, theta: PyTree, key: jax.Array) -> ParmState:
    """B starts at 0, as in any adapter; W_1 and W_2 as in PARM's code, uniform in ± 1 / √(their inputs)."""
    o, k = setup.options, len(setup.objectives)
    core = {}
    for i, (path, b) in enumerate(sorted(_factors(theta).items())):
        w1_key, w2_key = jax.random.split(jax.random.fold_in(key, i))
        layers = b.shape[:-2]
        core[path.replace("/", ".")] = {
            "w1": _uniform(w1_key, (*layers, o.r1, o.r1), o.r1),
            "w2": _uniform(w2_key, (*layers, k, o.r2, o.r2), o.r2**2),
        }
    policy = {"adapter": theta, "core": core}
    return ParmState(jnp.zeros((), jnp.int32), policy, setup.policy_tx.init(policy), init_stats(k), key)


def adapter_for(policy: PyTree, w: jax.Array) -> PyTree:
    """The plain low-rank leaves of one preference w [K]: A as it is, B replaced by [W_1 B_1; W_2(w) B_2]."""
    flat = traverse_util.flatten_dict(policy["adapter"], sep="/")
    for path, b in _factors(policy["adapter"]).items():
        core = policy["core"][path.replace("/", ".")]
        r1 = core["w1"].shape[-1]
        mixed = jnp.einsum("k,...kij->...ij", w, core["w2"])
        flat[path] = jnp.concatenate([core["w1"] @ b[..., :r1, :], mixed @ b[..., r1:, :]], axis=-2)
    return traverse_util.unflatten_dict(flat, sep="/")


def rollout(setup: Setup, state: ParmState, frozen: Frozen, batch: Batch) -> Rollout:
    """The base answers; it is never changed."""
    sample_key, _ = meal.step_keys(state, 2)
    size, n, k = batch.tokens.shape[0], setup.meal.candidates, len(setup.objectives)
    w = jnp.full((size, n, k), 1.0 / k)
    return Rollout(w, w, None, family.respond_as_base(setup, frozen, batch, sample_key, n))


def update(
    setup: Setup, state: ParmState, frozen: Frozen, batch: Batch, rolled: Rollout, scores: Scores
) -> tuple[ParmState, dict[str, jax.Array]]:
    """Two updates, on the pairs of the even and of the odd prompts, each prompt under its own preference."""
    o, k = setup.options, len(setup.objectives)
    _, key, drop_key = meal.step_keys(state, 3)
    alpha = jnp.full(k, o.dirichlet)
    w = jax.random.dirichlet(key, alpha, (batch.tokens.shape[0],))
    best, worst, proper = paired(scores.rewards, o.pairs)  # [B, P, K]
    picked = jnp.concatenate([best, worst], axis=1).reshape(len(w), -1)  # [B, 2 P K]

    def pick(x):
        return jnp.take_along_axis(x, picked.reshape(*picked.shape, *[1] * (x.ndim - 2)), axis=1)

    pairs = (pick(rolled.responses.tokens), pick(rolled.responses.mask))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(drop_key, batch.id)
    data = (batch, pairs, proper, w, keys)
    halves = jax.tree.map(lambda x: jnp.stack([x[0::2], x[1::2]]), data)

    def loss(policy, part):
        batch, (tokens, mask), proper, w, keys = part
        log_likelihood = functools.partial(_log_likelihood, setup, frozen, policy)
        total = jax.vmap(log_likelihood)(batch, w, tokens, mask, keys).reshape(len(w), 2, o.pairs, k)
        each = dpo.dpo_loss(total[:, 0], total[:, 1], o.beta)
        prompts = jnp.sum(jnp.any(proper, axis=(1, 2)))
        return jnp.sum(jnp.where(proper, w[:, None] * each, 0.0)) / (o.pairs * jnp.maximum(prompts, 1))

    def descend(carry, part):
        policy, opt = carry
        policy, opt, value, norm = family.descend(setup, loss, policy, opt, part)
        return (policy, opt), (value, norm)

    (policy, opt), (values, norms) = jax.lax.scan(descend, (state.policy, state.policy_opt), halves)
    metrics = {"loss/base": jnp.mean(values), "grad_norm/policy": norms[-1]} | meal.describe(
        setup, rolled, scores.rewards
    )
    stats = absorb(state.rewards, scores.rewards, setup.meal.stats_window)
    return state.replace(step=state.step + 1, policy=policy, policy_opt=opt, rewards=stats), metrics


def paired(rewards: jax.Array, pairs: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Per objective, pairs the best candidate with the worst, the second best with the second worst, and so on.

    Args:
      rewards: [B, N, K].
      pairs: P, at most N // 2.

    Returns:
      Indices [B, P, K] of the better and of the worse, and whether they differ in reward.
    """
    order = jnp.argsort(rewards, axis=1)
    worse, better = order[:, :pairs], order[:, ::-1][:, :pairs]
    gap = jnp.take_along_axis(rewards, better, axis=1) - jnp.take_along_axis(rewards, worse, axis=1)
    return better, worse, gap > 0


def answer(
    setup: Setup, state: ParmState, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """Answers w [B, M, K], the same for every prompt of a batch, by guided decoding: two forward passes per token."""

    def run(batch: Batch):
        keys = sample_keys(key, batch.id, w.shape[1])
        scales = jnp.broadcast_to(jnp.array([1.0, 1.0 / setup.options.decode_beta]), (len(batch.id), 1, 2))

        def respond(w, keys):  # [K], [B]
            params = merge(adapter_for(state.policy, w), frozen.policy)
            models = ((setup.base, frozen.reference), (setup.policy, params))
            unused = jnp.zeros((keys.shape[0], 1, w.shape[0]))
            return decode_mixture(
                models, scales, batch.tokens, batch.mask, unused, keys[:, None], max_new=setup.max_new,
                sampling=sampling, end=setup.end, pad=setup.pad, forbidden=setup.forbidden,
            )  # fmt: skip

        return family.side_by_side(jax.vmap(respond, in_axes=(0, 1))(w[0], keys))

    return Rollout(w, w, None, meal.in_pieces(run, batch, setup.micro.rollout))


def _log_likelihood(setup, frozen, policy, batch: Batch, w, tokens, mask, key) -> jax.Array:
    """log π_a(y | x, w) [N] of one prompt's responses [N, T] under one preference [K]; `key` for dropout."""
    unused = jnp.zeros((1, tokens.shape[0], w.shape[0]))
    prompts = jax.tree.map(lambda x: x[None], batch)
    token, _ = meal.read(setup, adapter_for(policy, w), frozen, prompts, unused, tokens[None], dropout_key=key)
    return jnp.sum(token.logp[0] * mask, axis=-1)


def _uniform(key: jax.Array, shape: tuple[int, ...], fan: int) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * fan**-0.5


def _factors(adapter: PyTree) -> dict[str, jax.Array]:
    """Path to B [..., R, F] of every adapted layer."""
    flat = traverse_util.flatten_dict(adapter, sep="/")
    return {path: leaf for path, leaf in flat.items() if path.endswith("lora_b")}
