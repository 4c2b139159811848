"""Attention over two sets of keys: the prompt's, shared by its candidates, and a candidate's own.

`attend` is written in XLA's operations; it runs anywhere and has every derivative. `attend_fused` is cuDNN's kernel behind
`jax.nn.dot_product_attention`, for passes over many tokens on NVIDIA GPUs; decode_attention.py has one for decoding.

Letters as in transformer.py: B prompts, N candidates, T query tokens, S key tokens, H heads, G key-value heads, C head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

ATTENTION = ("plain", "cudnn")
MASKED = -1e30  # finite, so that a row whose keys are all masked gives numbers (ignored later) and not NaN


class KeyValues(NamedTuple):
    """Keys (after rotation) and values: of prompts [L, B, S, G, C], of candidates [L, B, N, S, G, C]; no L inside a layer."""

    k: jax.Array
    v: jax.Array


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap · tanh(x / cap), or x (Gemma 2, arXiv 2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def by_group(q: jax.Array, groups: int, scale: float | None) -> jax.Array:
    """Queries [B, N, T, H, C], scaled, as [B, N, T, G, R, C] by the keys that they share; scale is C ** -0.5 unless given."""
    *lead, heads, width = q.shape
    return q.reshape(*lead, groups, heads // groups, width) * (width**-0.5 if scale is None else scale)


def attend(
    q: jax.Array,
    own: KeyValues,
    own_mask: jax.Array,
    prompt: KeyValues | None,
    prompt_mask: jax.Array | None,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax attention over the prompt's keys, shared by its candidates, and a candidate's own keys.

    Args:
      q: [B, N, T, H, C].
      own: k, v [B, N, S, G, C].
      own_mask: bool, broadcastable to [B, N, T, S]; True where the query may look.
      prompt: k, v [B, S', G, C], or None.
      prompt_mask: bool, broadcastable to [B, N, T, S'].
      scale: queries are multiplied by it; C ** -0.5 unless given.
      cap: see `softcap`.

    Returns:
      [B, N, T, H, C]. The softmax is float32.
    """
    shape = q.shape
    # Groups outermost and keys innermost, so that every product below finds its operands, and leaves its result, as the next
    # one reads them: a compiler for CPUs writes each other order out.
    q = by_group(q, own.k.shape[-2], scale).transpose(0, 3, 1, 4, 2, 5)  # [B, G, N, R, T, C]
    own = KeyValues(*(a.transpose(0, 3, 1, 2, 4) for a in own))  # [B, G, N, S, C]
    scores = jnp.einsum("bgnrtc,bgnsc->bgnrts", q, own.k, preferred_element_type=jnp.float32)
    scores = jnp.where(own_mask[:, None, :, None], softcap(scores, cap), MASKED)
    if prompt is not None:
        prompt = KeyValues(*(a.transpose(0, 2, 1, 3) for a in prompt))  # [B, G, S', C]
        shared = jnp.einsum("bgnrtc,bgsc->bgnrts", q, prompt.k, preferred_element_type=jnp.float32)
        shared = jnp.where(prompt_mask[:, None, :, None], softcap(shared, cap), MASKED)
        scores = jnp.concatenate([shared, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    split = 0 if prompt is None else prompt.k.shape[2]
    out = jnp.einsum("bgnrts,bgnsc->bgnrtc", weights[..., split:], own.v)
    if prompt is not None:
        out += jnp.einsum("bgnrts,bgsc->bgnrtc", weights[..., :split], prompt.v)
    return out.transpose(0, 2, 4, 1, 3, 5).reshape(shape)


def attend_fused(
    q: jax.Array,
    own: KeyValues,
    own_mask: jax.Array,
    prompt: KeyValues | None,
    prompt_mask: jax.Array | None,
    scale: float | None = None,
    cap: float | None = None,
    implementation: str = "cudnn",
) -> jax.Array:
    """`attend` by one fused kernel, to rounding: no [T, S] array of scores goes through memory, in neither direction.

    The prompt's keys are copied for each candidate, which costs less than the scores did. A query that may see nothing, such
    as padding, sees everything: the kernel's gradient would be NaN, and nobody reads the result. The kernel has no
    forward-mode derivative, so of the hypergradients only "none" is for it.

    Raises:
      ValueError: scores are capped (Gemma 2), the type is float32, or there is no GPU.
    """
    if cap is not None:
        raise ValueError("config.policy.attention='cudnn' does not cap scores, as this model does: take 'plain'.")
    if implementation == "cudnn" and q.dtype == jnp.float32:
        raise ValueError(
            "config.policy.attention='cudnn' computes in bfloat16: set config.policy.dtype, or take 'plain'."
        )
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            f"config.policy.attention='cudnn' needs an NVIDIA GPU, not {jax.default_backend()}: take 'plain'."
        )
    lead = q.shape[:3]  # [B, N, T]
    k, v, mask = *own, jnp.broadcast_to(own_mask, (*lead, own.k.shape[2]))
    if prompt is not None:

        def shared(a):
            return jnp.broadcast_to(a[:, None], (*lead[:2], *a.shape[1:]))

        k, v = (jnp.concatenate([shared(a), b], axis=2) for a, b in zip(prompt, own, strict=True))
        mask = jnp.concatenate([jnp.broadcast_to(prompt_mask, (*lead, prompt.k.shape[1])), mask], axis=-1)
    odd, odd_keys = lead[2] % 2, mask.shape[-1] % 2  # the kernel's backward pass takes even lengths alone

    def fill(a, by):
        return jnp.pad(a, [(0, 0), (0, by)] + [(0, 0)] * (a.ndim - 2))

    queries, k, v, mask = (a.reshape(-1, *a.shape[2:]) for a in (q, k, v, mask))
    mask = jnp.pad(mask, ((0, 0), (0, odd), (0, odd_keys)))
    mask |= ~jnp.any(mask, axis=-1, keepdims=True)
    queries, k, v = fill(queries, odd), fill(k, odd_keys), fill(v, odd_keys)
    y = jax.nn.dot_product_attention(queries, k, v, mask=mask[:, None], scale=scale, implementation=implementation)
    return y[:, : lead[2]].reshape(q.shape)
