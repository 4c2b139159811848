"""The one step that composes rollout, scoring, ranking and both levels, on the state of `meal.state`.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens, V vocabulary, D width.

    rollout   targets w → proposals ŵ = g_φ(x, w) → responses y ~ π_θ(· | x, ŵ)
    score     rewards of every candidate (and the reference model's hidden states, where a KL is asked for)
    update    ranking, adapted preferences p, the weight-net by the hypergradient, the policy on both halves

Each is a pure function of (setup, arrays); `step` is their composition. Nothing here jits, shards or reads a file. Where
rewards read text, a run calls `rollout` and `score`, adds the host's columns, and calls `update`: the same functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meal_jax.meal import bilevel, subset
from meal_jax.meal.bilevel import join_chunks, split_chunks
from meal_jax.meal.normalise import absorb, init_stats, normalise, scale_by_pool
from meal_jax.meal.preference import accept, adapt, choose_tau, control, draw_targets, kl, log_accept, share
from meal_jax.meal.state import Batch, Frozen, MealConfig, Micro, Rollout, Scores, Setup, State  # noqa: F401
from meal_jax.meal.weight_net import absorb_prompts
from meal_jax.models.lora import merge
from meal_jax.models.policy import TokenStats, one_per_candidate, token_stats
from meal_jax.rollout.decode import Responses, decode, sample_keys
from meal_jax.rollout.sampling import Sampling
from meal_jax.rollout.weights import for_rollout

PyTree = Any


class _Pool(NamedTuple):
    """Rows of a step as both levels see them: a half-batch of prompts with their candidates."""

    batch: Batch
    rollout: Rollout
    r: jax.Array
    reference: jax.Array | None
    tau: jax.Array | None = None  # of each prompt [B], where it is not `meal.tau`


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
    policy, params = for_rollout(setup.policy, merge(theta, frozen.policy), setup.rollout_weights)

    def run(rows: tuple[Batch, jax.Array]) -> Rollout:
        batch, w = rows
        prompt = policy.apply({"params": params}, batch.tokens, batch.mask, method="prefill")
        w_hat = propose(setup, phi, prompt.pooled, w)
        keys, conditioned_on, prefilled = sample_keys(key, batch.id, w.shape[1]), w_hat, prompt
        if policy.conditioning.prompt_per_candidate:  # B · N prompts of one candidate each
            rows, (keys, conditioned_on) = one_per_candidate((batch.tokens, batch.mask), (keys, w_hat))
            prefilled = policy.apply({"params": params}, *rows, w=conditioned_on, method="prefill")
        responses = decode(
            policy, params, prefilled, conditioned_on, keys, max_new=setup.max_new, sampling=sampling, end=setup.end,
            pad=setup.pad, forbidden=setup.forbidden,
        )  # fmt: skip
        responses = jax.tree.map(lambda x: x.reshape(*w.shape[:2], *x.shape[2:]), responses)
        return Rollout(w, w_hat, prompt.pooled, responses)

    return in_pieces(run, (batch, w), setup.micro.rollout)


def answer(
    setup: Setup, state: State, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array, sampling: Sampling
) -> Rollout:
    """How a trained state answers preferences w [B, N, K]: through its net, where it has one."""
    return respond(setup, state.policy, state.net, frozen, batch, w, key, sampling)


def rollout(setup: Setup, state: State, frozen: Frozen, batch: Batch) -> Rollout:
    """Steps 1–3 of the method: draw targets, propose, respond."""
    target_key, sample_key, _, _ = step_keys(state, 4)
    m = setup.meal
    w = draw_targets(target_key, batch.id, m.candidates, len(setup.objectives), m.targets, m.gap)
    return respond(setup, state.policy, state.net, frozen, batch, w, sample_key, setup.sampling)


def score(setup: Setup, frozen: Frozen, batch: Batch, responses: Responses) -> Scores:
    """Raw rewards of the responses. One pass of the base model serves both the reward heads and π_ref's KL."""

    def run(rows: tuple[Batch, Responses]) -> Scores:
        batch, responses = rows
        hidden = None
        if setup.reward_reads_base or setup.keep_reference:
            variables = {"params": frozen.reference}
            prompt = setup.base.apply(variables, batch.tokens, batch.mask, method="prefill")
            tokens = jnp.pad(responses.tokens, ((0, 0), (0, 0), (0, 1)))  # one more: the state after the last token too
            unused = jnp.zeros((*tokens.shape[:2], len(setup.objectives)))
            hidden = setup.base.apply(variables, prompt, unused, tokens, method="respond")
        rewards = setup.reward(frozen.reward, batch, responses, hidden)
        return Scores(rewards.astype(jnp.float32), hidden[:, :, :-1] if setup.keep_reference else None)

    return in_pieces(run, (batch, responses), setup.micro.score)


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
      dropout_key: of a training pass, in which adapters drop out where the policy has dropout; None for no training pass.

    Returns:
      TokenStats [B, N, T], and the policy's hidden states [B, N, T, D].
    """
    lora = setup.policy.config.lora
    still = dropout_key is None or lora is None or lora.dropout == 0
    apply = functools.partial(
        setup.policy.apply, {"params": merge(theta, frozen.policy)}, rngs=None if still else {"dropout": dropout_key}
    )
    rows, conditioned_on, responses, prompt_w = (prompts.tokens, prompts.mask), w, tokens, None
    if setup.policy.conditioning.prompt_per_candidate:
        rows, (conditioned_on, responses) = one_per_candidate(rows, (w, tokens))
        prompt_w = conditioned_on
    hidden = apply(apply(*rows, still, prompt_w, method="prefill"), conditioned_on, responses, still, method="respond")
    hidden = hidden.reshape(*tokens.shape, -1)
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
    stats = absorb(state.rewards, scores.rewards, m.stats_window)
    r = normalise(stats, scores.rewards)
    r = scale_by_pool(r) if m.reward_scale == "pool" else r
    tau = choose_tau(rolled.w, r, m.accept_share) if m.accept_share else None
    pool = _Pool(batch, rolled, r, scores.reference, tau)
    inner, outer = _half(pool, 0), _half(pool, 1)
    weigh = functools.partial(_preferences, setup, accept_key)
    base_level = functools.partial(_base_level, setup, frozen, dropout_key)

    def read_base(phi: PyTree) -> dict[str, jax.Array]:
        _, p, a, b = weigh(phi, inner)
        # Under "first_order" φ reaches the loss through a alone: no derivative of the network.
        return {"share": share(a, b)} | ({} if m.hypergradient == "first_order" else {"p": p})

    def descend(theta: PyTree, opt: PyTree, half: _Pool, given: dict[str, jax.Array]):
        loss, grads, _ = bilevel.value_and_grads(base_level(half, given), theta, {})
        updates, opt = setup.policy_tx.update(grads, opt, theta)
        return optax.apply_updates(theta, updates), opt, loss, optax.tree.norm(grads)

    theta, opt, phi, net_opt = state.policy, state.policy_opt, state.net, state.net_opt
    metrics = {}
    if m.net:
        given = {"p": weigh(phi, inner)[1]} if m.hypergradient == "first_order" else {}
        drawn = None
        if m.meta_fraction < 1:  # independently in both halves; the keys that the rest of a step uses stay as they are
            drawn = tuple(subset.draw(key, len(batch.id) // 2, m.meta_fraction) for key in step_keys(state, 6)[4:])
        h = bilevel.hypergradient(
            base_level(inner, given, read_base), _meta_level(setup, frozen, outer), theta, phi,
            setup.policy_tx, opt, through_update=m.hypergradient != "none", drawn=drawn,
        )  # fmt: skip
        updates, net_opt = setup.net_tx.update(h.grad, net_opt, phi)
        phi = optax.apply_updates(phi, updates)
        metrics |= {"loss/meta": h.meta, "grad_norm/net": optax.tree.norm(h.grad)}
    w_hat, p, a, b = weigh(phi, pool)
    phi = absorb_prompts(phi, rolled.pooled, m.stats_window)
    halves = [(half, _learns_from(which, p, a, b)) for which, half in enumerate((inner, outer))]
    if m.net and m.reuse_virtual:
        theta, opt, loss_inner = h.virtual, h.virtual_opt, h.base
    else:
        theta, opt, loss_inner, _ = descend(theta, opt, *halves[0])
    theta, opt, loss_outer, norm = descend(theta, opt, *halves[1])
    if m.passes > 1:
        read_before = functools.partial(_read_before, setup, frozen, dropout_key, state.policy)
        again = [(half, given | {"before": read_before(half, given["p"])}) for half, given in halves]

        def serve(_, carry: tuple[PyTree, PyTree, jax.Array]) -> tuple[PyTree, PyTree, jax.Array]:
            theta, opt, norm = carry
            for half, given in again:
                theta, opt, _, norm = descend(theta, opt, half, given)
            return theta, opt, norm

        theta, opt, norm = jax.lax.fori_loop(1, m.passes, serve, (theta, opt, norm))
    metrics |= {"loss/base": (loss_inner + loss_outer) / 2, "grad_norm/policy": norm}
    metrics |= _diagnostics(setup, pool, scores.rewards, w_hat, p, a)
    new = State(state.step + 1, theta, opt, phi, net_opt, stats, state.key)
    return new, metrics


def _preferences(
    setup: Setup, key: jax.Array, phi: PyTree, pool: _Pool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Proposed ŵ and learned-from p [B, N, K], acceptance weights a and their control variate b [B, N], as functions of φ."""
    m, tau = setup.meal, _tau(setup.meal, pool)
    w_hat = propose(setup, phi, pool.rollout.pooled, pool.rollout.w)
    lam = m.lam if pool.tau is None or m.lam == 0 else m.lam / m.tau * tau  # λ/τ is the configured one in every prompt
    p = adapt(w_hat, pool.r, lam, tau) if m.adapt else w_hat
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, pool.batch.id)
    a = accept(keys, p, pool.r, tau, m.accept)
    b = control(a, p, pool.r, tau, m.accept, m.baseline)
    if m.rejected == "proposed":  # what counts against a preference counts against the one that was asked for
        p = jnp.where((a < b)[..., None], w_hat, p)
        a = accept(keys, p, pool.r, tau, m.accept)
        b = control(a, p, pool.r, tau, m.accept, m.baseline)
    return w_hat, p, a, b


def _tau(m: MealConfig, pool: _Pool) -> float | jax.Array:
    """τ, or that of each prompt [B]."""
    return m.tau if pool.tau is None else pool.tau


def _learns_from(which: int, p: jax.Array, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
    """What a half's loss is given: preferences and shares."""
    return {"p": _half(p, which), "share": share(_half(a, which), _half(b, which))}


def _read_before(setup: Setup, frozen: Frozen, key: jax.Array, theta: PyTree, half: _Pool, p: jax.Array) -> jax.Array:
    """log π of a half's response tokens under p before its first update [B, N, T]: what later passes take ratios to."""

    def run(rows):
        return _read_pool(setup, frozen, key, theta, rows[1], rows[0]).logp

    return jax.lax.stop_gradient(in_pieces(run, (half, p), setup.micro.gradient))


def _read_pool(
    setup: Setup, frozen: Frozen, key: jax.Array | None, theta: PyTree, w: jax.Array, pool: _Pool, **how
) -> TokenStats:
    dropout = None if key is None else jax.random.fold_in(key, pool.batch.id[0])
    return read(setup, theta, frozen, pool.batch, w, pool.rollout.responses.tokens, dropout_key=dropout, **how)[0]


def _base_level(
    setup: Setup,
    frozen: Frozen,
    key: jax.Array,
    half: _Pool,
    given: dict[str, jax.Array],
    reads: Callable[[PyTree], dict[str, jax.Array]] = lambda phi: {},
) -> bilevel.Level:
    """L_base of a half of the pool; its preferences "p" and shares "share" are what `reads` makes of φ, or `given`."""
    m, tokens = setup.meal, jnp.sum(half.rollout.responses.mask)

    def loss(theta: PyTree, x: dict[str, jax.Array], rows: tuple[_Pool, dict[str, jax.Array]]) -> jax.Array:
        pool, learnt = rows[0], rows[1] | x
        token = _read_pool(setup, frozen, key, theta, learnt["p"], pool, reference=pool.reference if m.beta else None)
        mask = pool.rollout.responses.mask
        return bilevel.base_loss(
            learnt["share"], token.logp, mask, token.kl, m.beta, m.length_norm, over=(1.0, tokens),
            before=learnt.get("before"), clip=m.pass_clip,
        )  # fmt: skip

    return bilevel.Level(reads, loss, (half, given), _pieces(half.batch.id.shape[0], setup.micro.gradient))


def _meta_level(setup: Setup, frozen: Frozen, half: _Pool) -> bilevel.Level:
    """L_meta of the other half; φ reaches it through the proposals. Read without dropout, whose masks would move the ratio."""
    m, targets = setup.meal, half.rollout.w
    over = targets[..., 0].size, jnp.sum(jnp.exp(log_accept(targets, half.r, _tau(m, half))))

    def loss(theta: PyTree, w_hat: jax.Array, pool: _Pool) -> jax.Array:
        token = _read_pool(setup, frozen, None, theta, w_hat, pool, temperature=setup.sampling.temperature or 1.0)
        responses = pool.rollout.responses
        return bilevel.meta_loss(
            pool.rollout.w, w_hat, pool.r, token.logp, responses.logp, responses.mask, kind=m.meta,
            tau=_tau(m, pool), rho=m.rho, ratio_clip=m.ratio_clip, length_norm=m.length_norm, over=over,
        )  # fmt: skip

    def proposals(phi):
        return propose(setup, phi, half.rollout.pooled, targets)

    return bilevel.Level(proposals, loss, half, _pieces(half.batch.id.shape[0], setup.micro.gradient))


def _pieces(prompts: int, at_a_time: int | None) -> int:
    """Number of parts to take the prompts in; `config.check` has seen to it that they divide."""
    return prompts // at_a_time if at_a_time and at_a_time < prompts else 1


def in_pieces(run: Callable[[PyTree], PyTree], rows: PyTree, at_a_time: int | None) -> PyTree:
    """run(rows) of trees of [B, ...], some prompts after others where `at_a_time` is given."""
    pieces = _pieces(jax.tree.leaves(rows)[0].shape[0], at_a_time)
    return run(rows) if pieces == 1 else join_chunks(jax.lax.map(run, split_chunks(rows, pieces)))


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


def _half(rows: PyTree, which: int) -> PyTree:
    """Every second prompt. Halving by parity and not in the middle keeps each half spread over all devices."""
    return jax.tree.map(lambda x: x[which], split_chunks(rows, 2))


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
    if pool.tau is not None:
        out["accept/tau"] = jnp.mean(pool.tau)
    for k, name in enumerate(setup.objectives):
        out[f"weight/{name}/target"] = jnp.mean(w[..., k])
        out[f"weight/{name}/proposed"] = jnp.mean(w_hat[..., k])
        out[f"weight/{name}/adapted"] = jnp.mean(p[..., k])
    return {name: value.astype(jnp.float32) for name, value in out.items()}
