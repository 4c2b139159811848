"""The train state and the one step that composes rollout, scoring, ranking and both levels.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens, V vocabulary, D width.

    rollout   targets w → proposals ŵ = g_φ(x, w) → responses y ~ π_θ(· | x, ŵ)
    score     rewards of every candidate (and the reference model's hidden states, where a KL is asked for)
    update    ranking, adapted preferences p, the weight-net by the hypergradient, the policy on both halves

Each is a pure function of (setup, arrays); `step` is their composition. Nothing here jits, shards or reads a file. Where
rewards read text, a run calls `rollout` and `score`, adds the host's columns, and calls `update`: the same functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from meal_jax.meal import bilevel
from meal_jax.meal.preference import accept, adapt, draw_targets, kl
from meal_jax.meal.weight_net import WeightNet
from meal_jax.models.lora import merge
from meal_jax.models.policy import Policy, TokenStats, token_stats
from meal_jax.rewards.normalise import RewardStats, absorb, init_stats, normalise
from meal_jax.rollout.decode import Responses, decode, sample_keys
from meal_jax.rollout.sampling import Sampling

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MealConfig:
    """The method's choices; the fields are explained in `meal_jax/config.py`."""

    lam: float = 1.0
    tau: float = 1.0
    accept: str = "soft"
    meta: str = "utility"
    hypergradient: str = "exact"
    rho: float = 0.1
    beta: float = 0.0
    candidates: int = 8
    targets: str = "stratified"
    net: bool = True
    adapt: bool = True
    reuse_virtual: bool = False
    ratio_clip: float = 0.2
    length_norm: str = "response"
    horizon: float = 10_000.0


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What a run holds fixed: modules, optimizers, the rules of sampling and the reward; closed over by the jitted step.

    Attributes:
      policy: π_θ.
      base: the policy without adapters and without a preference, π_ref and the trunk of reward heads; None if unused.
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
      chunk: response positions projected to the vocabulary at a time, 0 for all.
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
    chunk: int = 0
    prompt_length: int = 0
    options: Any = None


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
    rewards: RewardStats
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


class _Pool(NamedTuple):
    """Rows of a step as both levels see them: a half-batch of prompts with their candidates."""

    batch: Batch
    rollout: Rollout
    r: jax.Array
    reference: jax.Array | None


def init_state(setup: Setup, theta: PyTree, key: jax.Array) -> State:
    """A state at step 0 from the policy's trainable leaves and a typed key."""
    net_key, run_key = jax.random.split(key)
    k, width = len(setup.objectives), setup.policy.config.width
    phi = setup.net.init(net_key, jnp.zeros((1, width)), jnp.full((1, 1, k), 1.0 / k))["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        policy=theta,
        policy_opt=setup.policy_tx.init(theta),
        net=phi,
        net_opt=setup.net_tx.init(phi),
        rewards=init_stats(k),
        key=run_key,
    )


def propose(setup: Setup, phi: PyTree, pooled: jax.Array, w: jax.Array) -> jax.Array:
    """ŵ [B, N, K] for targets w: the weight-net's answer, or w itself where the net is not used."""
    return setup.net.apply({"params": phi}, pooled, w) if setup.meal.net else w


def respond(
    setup: Setup,
    theta: PyTree,
    phi: PyTree,
    frozen: Frozen,
    batch: Batch,
    w: jax.Array,
    key: jax.Array,
    sampling: Sampling,
) -> Rollout:
    """Proposes and responds for targets w [B, N, K]: what a rollout does in training, and evaluation on its grid."""
    params = merge(theta, frozen.policy)
    prompt = setup.policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
    w_hat = propose(setup, phi, prompt.pooled, w)
    responses = decode(
        setup.policy,
        params,
        prompt,
        w_hat,
        sample_keys(key, batch.id, w.shape[1]),
        max_new=setup.max_new,
        sampling=sampling,
        end=setup.end,
        pad=setup.pad,
        forbidden=setup.forbidden,
    )
    return Rollout(w, w_hat, prompt.pooled, responses)


def answer(
    setup: Setup, state: State, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """How a trained state answers preferences w [B, N, K]: through its net, where it has one."""
    return respond(setup, state.policy, state.net, frozen, batch, w, key, sampling)


def rollout(setup: Setup, state: State, frozen: Frozen, batch: Batch) -> Rollout:
    """Steps 1–3 of the method: draw targets, propose, respond."""
    target_key, sample_key, _, _ = step_keys(state, 4)
    w = draw_targets(target_key, batch.id, setup.meal.candidates, len(setup.objectives), setup.meal.targets)
    return respond(setup, state.policy, state.net, frozen, batch, w, sample_key, setup.sampling)


def score(setup: Setup, frozen: Frozen, batch: Batch, responses: Responses) -> Scores:
    """Raw rewards of the responses. One pass of the base model serves both the reward heads and π_ref's KL."""
    hidden = None
    if setup.reward_reads_base or setup.meal.beta:
        variables = {"params": frozen.reference}
        prompt = setup.base.apply(variables, batch.tokens, batch.mask, method="prefill")
        tokens = jnp.pad(responses.tokens, ((0, 0), (0, 0), (0, 1)))  # one more: the state after the last token too
        unused = jnp.zeros((*tokens.shape[:2], len(setup.objectives)))
        hidden = setup.base.apply(variables, prompt, unused, tokens, method="respond")
    rewards = setup.reward(frozen.reward, batch, responses, hidden)
    return Scores(rewards.astype(jnp.float32), hidden[:, :, :-1] if setup.meal.beta else None)


def read(
    setup: Setup,
    theta: PyTree,
    frozen: Frozen,
    prompts: Any,
    w: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    reference: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[TokenStats, jax.Array]:
    """Teacher-forced responses under θ: what every method's loss is made of.

    Args:
      setup, frozen: fixed parts.
      theta: the policy's trainable leaves.
      prompts: with tokens and mask [B, S], such as a Batch.
      w: [B, N, K] preferences that the policy reads.
      tokens: [B, N, T] response tokens.
      temperature: that log-probabilities are taken at.
      reference: π_ref's hidden states [B, N, T, D], for the KL; None for none.
      dropout_key: adapters drop out; None for not.

    Returns:
      TokenStats [B, N, T], and the policy's hidden states [B, N, T, D].
    """
    still = dropout_key is None
    apply = functools.partial(
        setup.policy.apply, {"params": merge(theta, frozen.policy)}, rngs=None if still else {"dropout": dropout_key}
    )
    hidden = apply(apply(prompts.tokens, prompts.mask, still, method="prefill"), w, tokens, still, method="respond")
    stats = token_stats(
        functools.partial(apply, method="unembed"),
        hidden,
        tokens,
        forbidden=setup.forbidden,
        temperature=temperature,
        reference=None if reference is None else (_reference_unembed(setup, frozen), reference),
        chunk=setup.chunk,
    )
    return stats, hidden


def read_reference(
    setup: Setup, frozen: Frozen, reference: jax.Array, tokens: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """log π_ref of response tokens [B, N, T], from its hidden states [B, N, T, D] as `score` keeps them."""
    unembed = _reference_unembed(setup, frozen)
    return token_stats(
        unembed, reference, tokens, forbidden=setup.forbidden, temperature=temperature, chunk=setup.chunk
    ).logp


def _reference_unembed(setup: Setup, frozen: Frozen) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(setup.base.apply, {"params": frozen.reference}, method="unembed")


def update(
    setup: Setup, state: State, frozen: Frozen, batch: Batch, rolled: Rollout, scores: Scores
) -> tuple[State, dict[str, jax.Array]]:
    """Steps 4–10 of the method: rank, adapt preferences, update the weight-net, then the policy on both halves.

    Args:
      setup: fixed parts.
      state: donated by the caller.
      frozen: read only.
      batch: prompts, B even.
      rolled: what `rollout` returned for this state and batch.
      scores: what `score` returned.

    Returns:
      The next state, and metrics: a dict of float32 scalars.
    """
    m = setup.meal
    _, _, accept_key, dropout_key = step_keys(state, 4)
    stats = absorb(state.rewards, scores.rewards, m.horizon)
    pool = _Pool(batch, rolled, normalise(stats, scores.rewards), scores.reference)
    inner, outer = _half(pool, 0), _half(pool, 1)
    dropout = setup.policy.config.lora is not None and setup.policy.config.lora.dropout > 0

    def preferences(phi: PyTree, pool: _Pool) -> tuple[jax.Array, jax.Array, jax.Array]:
        w_hat = propose(setup, phi, pool.rollout.pooled, pool.rollout.w)
        p = adapt(w_hat, pool.r, m.lam, m.tau) if m.adapt else w_hat
        keys = jax.vmap(jax.random.fold_in, (None, 0))(accept_key, pool.batch.id)
        return w_hat, p, accept(keys, p, pool.r, m.tau, m.accept)

    def likelihood(theta: PyTree, w: jax.Array, pool: _Pool, *, temperature: float = 1.0, with_kl: bool = False):
        token, _ = read(
            setup, theta, frozen, pool.batch, w, pool.rollout.responses.tokens, temperature=temperature,
            reference=pool.reference if with_kl else None, dropout_key=dropout_key if dropout else None,
        )  # fmt: skip
        return token

    def base(theta: PyTree, p: jax.Array, a: jax.Array, pool: _Pool) -> jax.Array:
        token = likelihood(theta, p, pool, with_kl=m.beta > 0)
        return bilevel.base_loss(a, token.logp, pool.rollout.responses.mask, token.kl, m.beta, m.length_norm)

    def virtual_base(theta: PyTree, phi: PyTree) -> jax.Array:
        _, p, a = preferences(phi, inner)
        if m.hypergradient == "first_order":  # φ then reaches the loss through a alone: no derivative of the network
            p = jax.lax.stop_gradient(p)
        return base(theta, p, a, inner)

    def meta(theta: PyTree, phi: PyTree) -> jax.Array:
        w_hat = propose(setup, phi, outer.rollout.pooled, outer.rollout.w)
        token = likelihood(theta, w_hat, outer, temperature=setup.sampling.temperature or 1.0)
        responses = outer.rollout.responses
        return bilevel.meta_loss(
            outer.rollout.w, w_hat, outer.r, token.logp, responses.logp, responses.mask,
            kind=m.meta, tau=m.tau, rho=m.rho, ratio_clip=m.ratio_clip, length_norm=m.length_norm,
        )  # fmt: skip

    def descend(theta: PyTree, opt: PyTree, which: int):
        loss, grads = jax.value_and_grad(base)(theta, _half(p, which), _half(a, which), _half(pool, which))
        updates, opt = setup.policy_tx.update(grads, opt, theta)
        return optax.apply_updates(theta, updates), opt, loss, optax.tree.norm(grads)

    theta, opt, phi, net_opt = state.policy, state.policy_opt, state.net, state.net_opt
    metrics = {}
    if m.net:
        h = bilevel.hypergradient(
            virtual_base, meta, theta, phi, setup.policy_tx, opt, through_update=m.hypergradient != "none"
        )
        updates, net_opt = setup.net_tx.update(h.grad, net_opt, phi)
        phi = optax.apply_updates(phi, updates)
        metrics |= {"loss/meta": h.meta, "grad_norm/net": optax.tree.norm(h.grad)}
    w_hat, p, a = preferences(phi, pool)
    if m.net and m.reuse_virtual:
        theta, opt, loss_inner = h.virtual, h.virtual_opt, h.base
    else:
        theta, opt, loss_inner, _ = descend(theta, opt, 0)
    theta, opt, loss_outer, norm = descend(theta, opt, 1)
    metrics |= {"loss/base": (loss_inner + loss_outer) / 2, "grad_norm/policy": norm}
    metrics |= _diagnostics(setup, pool, scores.rewards, w_hat, p, a)
    new = State(state.step + 1, theta, opt, phi, net_opt, stats, state.key)
    return new, metrics


def step(setup: Setup, state: State, frozen: Frozen, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    """One whole step of Meal: rollout, scoring, ranking, both levels, both optimizers. Jit this."""
    rolled = rollout(setup, state, frozen, batch)
    return update(setup, state, frozen, batch, rolled, score(setup, frozen, batch, rolled.responses))


def step_keys(state: Any, count: int) -> jax.Array:
    """`count` keys for what is random in a step of any method's state: a function of its key and its step."""
    return jax.random.split(jax.random.fold_in(state.key, state.step), count)


def describe(setup: Setup, rolled: Rollout, raw: jax.Array) -> dict[str, jax.Array]:
    """The metrics that every method writes, as scalars, from raw rewards [B, N, K]."""
    out = {
        "utility": jnp.mean(jnp.sum(rolled.w * raw, axis=-1)),
        "response/length": jnp.mean(jnp.sum(rolled.responses.mask, axis=-1)),
        "response/ended": jnp.mean(rolled.responses.ended),
    }
    for k, name in enumerate(setup.objectives):
        out[f"reward/{name}/mean"] = jnp.mean(raw[..., k])
        out[f"reward/{name}/std"] = jnp.std(raw[..., k])
    return {name: value.astype(jnp.float32) for name, value in out.items()}


def _half(pool: _Pool, which: int) -> _Pool:
    """Every second prompt. Halving by parity and not in the middle keeps each half spread over all devices."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // 2, 2, *x.shape[1:])[:, which], pool)


def _diagnostics(setup: Setup, pool: _Pool, raw: jax.Array, w_hat: jax.Array, p: jax.Array, a: jax.Array):
    """What a reader of the curves wants to know of a step, as scalars."""
    responses, w = pool.rollout.responses, pool.rollout.w
    out = describe(setup, pool.rollout, raw) | {
        "preference/kl_proposed_target": jnp.mean(kl(w_hat, w)),
        "preference/kl_adapted_proposed": jnp.mean(kl(p, w_hat)),
        # Candidates that share the weight, as a fraction of the pool: 1 is plain SFT, 1/N is one winner a pool.
        "accept/effective": jnp.mean(
            jnp.sum(a, axis=1) ** 2 / jnp.maximum(jnp.sum(a**2, axis=1), 1e-12) / setup.meal.candidates
        ),
        "response/entropy": -jnp.sum(responses.logp) / jnp.maximum(jnp.sum(responses.mask), 1),
    }
    for k, name in enumerate(setup.objectives):
        out[f"weight/{name}/proposed"] = jnp.mean(w_hat[..., k])
        out[f"weight/{name}/adapted"] = jnp.mean(p[..., k])
    return {name: value.astype(jnp.float32) for name, value in out.items()}
