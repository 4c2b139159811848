"""Sampling responses: one prefill per prompt, then a `lax.while_loop` over a cache that is updated in place.

Letters: B prompts, N candidates, K objectives, S prompt tokens, P conditioning slots, T response tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.models.policy import Policy, Prefilled, empty_cache
from meal_jax.rollout import compact
from meal_jax.rollout.compact import Rows
from meal_jax.rollout.sampling import Sampling, sample

PyTree = Any


class Responses(NamedTuple):
    """Sampled responses.

    Attributes:
      tokens: [B, N, T] int32; after a response's end token come pad tokens.
      mask: [B, N, T] bool, True up to and including the end token.
      logp: [B, N, T] float32, log-probability of each token under the distribution it was drawn from; 0 after the end.
      ended: [B, N] bool, the response reached its end token (one cut at T tokens did not).
    """

    tokens: jax.Array
    mask: jax.Array
    logp: jax.Array
    ended: jax.Array


def sample_keys(key: jax.Array, prompt_id: jax.Array, candidates: int) -> jax.Array:
    """A generator [B, N] for each (prompt, candidate) that depends on nothing else: not on batch order, not on devices."""
    per_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_id)
    return jax.vmap(lambda k: jax.vmap(lambda n: jax.random.fold_in(k, n))(jnp.arange(candidates)))(per_prompt)


def decode(
    policy: Policy,
    params: PyTree,
    prompt: Prefilled,
    w: jax.Array,
    keys: jax.Array,
    *,
    max_new: int,
    sampling: Sampling,
    end: int,
    pad: int,
    forbidden: jax.Array | None = None,
    limits: jax.Array | None = None,
) -> Responses:
    """Samples a response for each preference of each prompt; stops early once every response has ended.

    Args:
      policy: the module; `params` its parameters.
      prompt: B prefilled prompts, shared by their candidates.
      w: [B, N, K] preferences that the responses answer under.
      keys: [B, N] typed keys, as from `sample_keys`.
      max_new: T.
      sampling: how tokens are drawn.
      end: id of the token that ends a response.
      pad: id written after the end.
      forbidden: [V] bool, tokens never drawn.
      limits: [B, N] int32, maximum tokens of each response, at least 1; None for `max_new`.

    Returns:
      Responses.
    """
    start, step = _one_model(policy, params, keys.shape, max_new)
    rows = Rows((prompt,), w, keys, limits=limits)
    return _generate(
        lambda rows: start(rows.prompts[0], rows.w),
        lambda rows, *args: step(rows.prompts[0], rows.w, *args),
        rows, max_new, sampling, end, pad, forbidden,
    )  # fmt: skip


def decode_mixture(
    models: Sequence[tuple[Policy, PyTree]],
    scales: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    w: jax.Array,
    keys: jax.Array,
    *,
    max_new: int,
    sampling: Sampling,
    end: int,
    pad: int,
    forbidden: jax.Array | None = None,
) -> Responses:
    """Samples from a product of policies, log π = Σ_i scale_i log π_i + constant: one forward pass of each a token.

    Args:
      models: I (module, parameters) pairs, over one vocabulary.
      scales: [B, N, I] float32.
      tokens, mask: left-padded prompts [B, S].
      w: [B, N, K] preferences for the models that read them.
      keys, max_new, sampling, end, pad, forbidden: as in `decode`.

    Returns:
      Responses; logp is that of the product.
    """
    parts, prompts = [], []
    for policy, params in models:
        prompts.append(policy.apply({"params": params}, tokens, mask, method="prefill"))
        parts.append(_one_model(policy, params, keys.shape, max_new))

    def mix(rows, logits):
        return sum(rows.scales[..., i, None] * jax.nn.log_softmax(member) for i, member in enumerate(logits))

    def start(rows):
        done = [start_one(prompt, rows.w) for (start_one, _), prompt in zip(parts, rows.prompts, strict=True)]
        logits, caches = zip(*done, strict=True)
        return mix(rows, logits), caches

    def step(rows, token, caches, t):
        members = zip(parts, rows.prompts, caches, strict=True)
        done = [step_one(prompt, rows.w, token, cache, t) for (_, step_one), prompt, cache in members]
        logits, caches = zip(*done, strict=True)
        return mix(rows, logits), caches

    return _generate(start, step, Rows(tuple(prompts), w, keys, scales), max_new, sampling, end, pad, forbidden)


def _one_model(policy: Policy, params: PyTree, shape: tuple[int, int], max_new: int):
    """A model's two functions, for prompts with preferences w [B, N, K], or fewer rows than `shape` says.

    start(prompt, w) → (logits of the first token [B, N, V], cache);
    step(prompt, w, token [B, N], cache, t) → (logits of token t, cache).
    """

    def apply(method, *args):
        return policy.apply({"params": params}, *args, method=method)

    slots, groups = policy.conditioning.length, compact.split_groups(shape[0])

    def unembed(hidden):
        return compact.filled(functools.partial(apply, "unembed"), hidden, groups, shape[0] * shape[1] // groups)

    def start(prompt, w):
        cache = empty_cache(policy.config, *w.shape[:2], max(slots + max_new - 1, 1))
        hidden, cache = apply("start", prompt, w, cache)
        return unembed(hidden), cache

    def step(prompt, w, token, cache, t):
        hidden, cache = apply("step", prompt, w, token, cache, slots + t - 1)
        return unembed(hidden), cache

    return start, step


def _generate(start, step, rows: Rows, max_new, sampling, end, pad, forbidden) -> Responses:
    """Draws from the logits of start(rows) and then of step(rows, token, cache, t) until every response has ended."""
    batch, candidates = rows.keys.shape
    groups = compact.split_groups(batch)

    def draw(rows, logits, t):
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(rows.keys, t)
        token, logp = sample(step_keys, logits, sampling, forbidden)
        if sampling.watch is not None:
            jax.debug.callback(sampling.watch, t, token)
        return token, logp

    def write(out, t, token, logp, live):
        return Responses(
            out.tokens.at[..., t].set(jnp.where(live, token, pad)),
            out.mask.at[..., t].set(live),
            out.logp.at[..., t].set(jnp.where(live, logp, 0.0)),
            out.ended | (live & (token == end)),
        )

    def goes_on(rows, live, token, t):
        live = live & (token != end)
        return live if rows.limits is None else live & (t + 1 < rows.limits)

    def loop(rows, state, sizes):
        """One loop for each row count: it runs until every group's live rows fit the next one."""
        fewer = sizes[0] if sizes else 0

        def more(state):
            t, _, live, _, _ = state
            return (t < max_new) & (compact.live_rows(live, groups) > fewer)

        def body(state):
            t, token, live, cache, out = state
            logits, cache = step(rows, token, cache, t)
            token, logp = draw(rows, logits, t)
            out = write(out, t, token, logp, live)
            return t + 1, token, goes_on(rows, live, token, t), cache, out

        t, token, live, cache, out = jax.lax.while_loop(more, body, state)
        if not sizes:
            return out
        index = compact.choose(live, groups, fewer)
        kept = compact.take((token, live), index), compact.take(cache, index, axis=1), compact.take(out, index)
        (token, live), cache, kept_out = kept
        kept_out = loop(compact.take_rows(rows, index), (t, token, live, cache, kept_out), sizes[1:])
        return compact.put_back(out, kept_out, index)

    logits, cache = start(rows)
    token, logp = draw(rows, logits, 0)
    blank = Responses(
        jnp.full((batch, candidates, max_new), pad, jnp.int32),
        jnp.zeros((batch, candidates, max_new), bool),
        jnp.zeros((batch, candidates, max_new), jnp.float32),
        jnp.zeros((batch, candidates), bool),
    )
    live = jnp.ones((batch, candidates), bool)
    state = (jnp.int32(1), token, goes_on(rows, live, token, 0), cache, write(blank, 0, token, logp, live))
    return loop(rows, state, compact.ladder(batch * candidates // groups, sampling.compact))
