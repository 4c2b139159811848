"""Sampling responses: one prefill per prompt, then a `lax.while_loop` over a cache that is updated in place.

Letters: B prompts, N candidates, K objectives, S prompt tokens, P conditioning slots, T response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.models.policy import Policy, Prefilled, empty_cache
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

    Returns:
      Responses.
    """
    start, step = _one_model(policy, params, prompt, w, max_new)
    return _generate(start, step, keys, max_new, sampling, end, pad, forbidden)


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
    parts = []
    for policy, params in models:
        prompt = policy.apply({"params": params}, tokens, mask, method="prefill")
        parts.append(_one_model(policy, params, prompt, w, max_new))

    def mix(logits):
        return sum(scales[..., i, None] * jax.nn.log_softmax(member) for i, member in enumerate(logits))

    def start():
        logits, caches = zip(*(start_one() for start_one, _ in parts), strict=True)
        return mix(logits), caches

    def step(token, caches, t):
        done = [step_one(token, cache, t) for (_, step_one), cache in zip(parts, caches, strict=True)]
        logits, caches = zip(*done, strict=True)
        return mix(logits), caches

    return _generate(start, step, keys, max_new, sampling, end, pad, forbidden)


def _one_model(policy: Policy, params: PyTree, prompt: Prefilled, w: jax.Array, max_new: int):
    """start() → (logits of the first token [B, N, V], cache); step(token [B, N], cache, t) → (logits of token t, cache)."""
    batch, candidates = w.shape[:2]

    def apply(method, *args):
        return policy.apply({"params": params}, *args, method=method)

    slots = policy.conditioning.length

    def start():
        cache = empty_cache(policy.config, batch, candidates, max(slots + max_new - 1, 1))
        hidden, cache = apply("start", prompt, w, cache)
        return apply("unembed", hidden), cache

    def step(token, cache, t):
        hidden, cache = apply("step", prompt, w, token, cache, slots + t - 1)
        return apply("unembed", hidden), cache

    return start, step


def _generate(start, step, keys, max_new, sampling, end, pad, forbidden) -> Responses:
    """The loop: draws from `start`'s logits and then from `step`'s until every response has ended."""
    batch, candidates = keys.shape

    def draw(logits, t):
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, t)
        token, logp = sample(step_keys, logits, sampling, forbidden)
        if sampling.watch is not None:
            jax.debug.callback(sampling.watch, t, token)
        return token, logp

    logits, cache = start()
    token, logp = draw(logits, 0)
    blank = Responses(
        jnp.full((batch, candidates, max_new), pad, jnp.int32),
        jnp.zeros((batch, candidates, max_new), bool),
        jnp.zeros((batch, candidates, max_new), jnp.float32),
        jnp.zeros((batch, candidates), bool),
    )

    def write(out, t, token, logp, live):
        return Responses(
            out.tokens.at[..., t].set(jnp.where(live, token, pad)),
            out.mask.at[..., t].set(live),
            out.logp.at[..., t].set(jnp.where(live, logp, 0.0)),
            out.ended | (live & (token == end)),
        )

    def more(state):
        t, _, live, _, _ = state
        return (t < max_new) & jnp.any(live)

    def body(state):
        t, token, live, cache, out = state
        logits, cache = step(token, cache, t)
        token, logp = draw(logits, t)
        out = write(out, t, token, logp, live)
        return t + 1, token, live & (token != end), cache, out

    live = jnp.ones((batch, candidates), bool)
    state = (jnp.int32(1), token, token != end, cache, write(blank, 0, token, logp, live))
    return jax.lax.while_loop(more, body, state)[-1]
