"""A decoder-only transformer of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Letters: B prompts, N candidates, T query tokens, S key tokens, V vocabulary, D width, H heads, G key-value heads,
R = H / G query heads that share one, C head width, F hidden width of the MLP, L layers.

Every call works on [B, N, T] tokens: N continuations of each of B prompts. Their queries attend to two sets of keys:
the prompt's, stored once per prompt and read by all its candidates, and their own. So a prompt is prefilled once, kept
once and, in training, differentiated once, however many candidates it has. The same function serves prefill (N = 1, no
prompt), training (T response tokens) and decoding (T = 1, keys in a cache that is updated in place).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from meal_jax.models.lora import Linear, Lora

MASKED = -1e30  # finite, so that a row whose keys are all masked gives numbers (ignored later) and not NaN


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches of the decoder; hashable, so that it may be a static argument.

    Attributes:
      vocab_size: V.
      width: D.
      layers: L.
      heads: H.
      kv_heads: G, a divisor of H.
      head_dim: C, even.
      hidden: F.
      rope_base: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      tied: the output projection is the transposed embedding.
      dtype: compute type, "float32" or "bfloat16"; norms, softmax and logits are float32 either way.
      param_dtype: storage type of the base weights.
      remat: what the backward pass keeps: "none" (everything), "dots" (matrix products), "full" (layer inputs only).
      unroll: layers per iteration of the scan over layers; more compiles longer.
      lora: adapters, or None.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    lora: Lora | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions rotate pairs of features.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is not one of {sorted(REMAT)}.")


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class KeyValues(NamedTuple):
    """Keys (after rotation) and values: of prompts [L, B, S, G, C], of candidates [L, B, N, S, G, C]; no L inside a layer."""

    k: jax.Array
    v: jax.Array


class Prompt(NamedTuple):
    """What a candidate attends to of its prompt.

    Attributes:
      kv: KeyValues [L, B, S, G, C].
      mask: [B, S] bool, False at padding.
    """

    kv: KeyValues
    mask: jax.Array


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · scale, in float32 (a sum of squares in bfloat16 loses half its digits); returns x's type."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def rope_tables(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin [..., 1, C/2] in float32 for integer positions [...] (RoFormer, arXiv 2104.09864)."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates feature pairs (i, i + C/2) of x [..., heads, C]: the half-split layout of Hugging Face's Llama weights."""
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: jax.Array, own: KeyValues, own_mask: jax.Array, prompt: KeyValues | None, prompt_mask: jax.Array | None
) -> jax.Array:
    """Softmax attention over the prompt's keys, shared by its candidates, and a candidate's own keys.

    Args:
      q: [B, N, T, H, C].
      own: k, v [B, N, S, G, C].
      own_mask: bool, broadcastable to [B, N, T, S]; True where the query may look.
      prompt: k, v [B, S', G, C], or None.
      prompt_mask: [B, S'] bool.

    Returns:
      [B, N, T, H, C]. The softmax is float32.
    """
    batch, candidates, length, heads, width = q.shape
    groups = own.k.shape[-2]
    q = q.reshape(batch, candidates, length, groups, heads // groups, width) * (width**-0.5)
    scores = jnp.einsum("bntgrc,bnsgc->bngrts", q, own.k, preferred_element_type=jnp.float32)
    scores = jnp.where(own_mask[:, :, None, None], scores, MASKED)
    if prompt is not None:
        shared = jnp.einsum("bntgrc,bsgc->bngrts", q, prompt.k, preferred_element_type=jnp.float32)
        shared = jnp.where(prompt_mask[:, None, None, None, None, :], shared, MASKED)
        scores = jnp.concatenate([shared, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    split = 0 if prompt is None else prompt.k.shape[1]
    out = jnp.einsum("bngrts,bnsgc->bntgrc", weights[..., split:], own.v)
    if prompt is not None:
        out += jnp.einsum("bngrts,bsgc->bntgrc", weights[..., :split], prompt.v)
    return out.reshape(batch, candidates, length, heads, width)


class Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, rope, mask, cache, layer, write_at, prompt, prompt_mask, deterministic):
        c = self.config
        linear = lambda name, features: Linear(  # noqa: E731
            features, c.lora, dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype), name=name
        )
        lead = x.shape[:-1]
        q = linear("q", c.heads * c.head_dim)(x, deterministic).reshape(*lead, c.heads, c.head_dim)
        k = linear("k", c.kv_heads * c.head_dim)(x, deterministic).reshape(*lead, c.kv_heads, c.head_dim)
        v = linear("v", c.kv_heads * c.head_dim)(x, deterministic).reshape(*lead, c.kv_heads, c.head_dim)
        q, k = rotate(q, rope), rotate(k, rope)
        own = fresh = KeyValues(k, v)
        if cache is not None:
            # The cache rides in the carry of the scan over layers and of the decoding loop, so XLA updates it in place.
            at = [jnp.asarray(i, jnp.int32) for i in (layer, 0, 0, write_at, 0, 0)]
            cache = jax.tree.map(lambda all_, new: jax.lax.dynamic_update_slice(all_, new[None], at), cache, fresh)
            own = jax.tree.map(lambda all_: jax.lax.dynamic_index_in_dim(all_, layer, keepdims=False), cache)
        y = attend(q, own, mask, prompt, prompt_mask)
        y = linear("o", c.width)(y.reshape(*lead, c.heads * c.head_dim), deterministic)
        return y, cache, fresh


class Mlp(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, deterministic):
        c = self.config
        linear = lambda name, features: Linear(  # noqa: E731
            features, c.lora, dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype), name=name
        )
        gate = nn.silu(linear("gate", c.hidden)(x, deterministic))
        return linear("down", c.width)(gate * linear("up", c.hidden)(x, deterministic), deterministic)


class Block(nn.Module):
    config: TransformerConfig
    keep_kv: bool
    deterministic: bool  # an attribute, since remat makes tracers of arguments and dropout must know it while tracing

    @nn.compact
    def __call__(self, carry, scanned, shared):
        c = self.config
        x, cache = carry
        layer, prompt = scanned
        rope, mask, write_at, prompt_mask = shared
        norm = lambda name, y: rms_norm(y, self.param(name, nn.initializers.ones, (c.width,)), c.norm_eps)  # noqa: E731
        y, cache, fresh = Attention(c, name="attention")(
            norm("attention_norm", x), rope, mask, cache, layer, write_at, prompt, prompt_mask, self.deterministic
        )
        x = x + y
        x = x + Mlp(c, name="mlp")(norm("mlp_norm", x), self.deterministic)
        return (x, cache), fresh if self.keep_kv else None


class Transformer(nn.Module):
    """Embedding, L scanned blocks, final norm, output projection. Parameters of the blocks are stacked [L, ...]."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.width**-0.5)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width), jnp.dtype(c.param_dtype))
        self.final_norm = self.param("final_norm", nn.initializers.ones, (c.width,))
        if not c.tied:
            self.output = self.param("output", init, (c.vocab_size, c.width), jnp.dtype(c.param_dtype))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [...] to [..., D] in the compute type."""
        return self.embedding[tokens].astype(self.config.dtype)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Last hidden state [..., D] to logits [..., V] in float32."""
        table = self.embedding if self.config.tied else self.output
        return jnp.einsum("...d,vd->...v", hidden, table.astype(self.config.dtype), preferred_element_type=jnp.float32)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        prompt: Prompt | None = None,
        cache: KeyValues | None = None,
        write_at: jax.Array | int = 0,
        keep_kv: bool = False,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Runs the blocks.

        Args:
          x: [B, N, T, D] embeddings.
          positions: [B, N, T] int (or broadcastable), the rotary position of each token.
          mask: bool, broadcastable to [B, N, T, S]; S is T without a cache, else the cache's length.
          prompt: keys and values that all N candidates of a prompt share.
          cache: [L, B, N, S, G, C]; the fresh keys are written at `write_at` and attention reads the cache.
          write_at: index in S of the first fresh key.
          keep_kv: return the fresh keys and values [L, B, N, T, G, C] (prefill).
          deterministic: False draws LoRA dropout from the "dropout" generator.

        Returns:
          hidden [B, N, T, D] after the final norm, and the updated cache, or the fresh keys and values if `keep_kv`.
        """
        c = self.config
        shared = (
            rope_tables(positions, c.head_dim, c.rope_base),
            mask,
            write_at,
            None if prompt is None else prompt.mask,
        )
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[c.remat])
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
            unroll=c.unroll,
        )(c, keep_kv, deterministic, name="layers")
        scanned = (jnp.arange(c.layers), None if prompt is None else prompt.kv)
        (x, cache), fresh = blocks((x, cache), scanned, shared)
        return rms_norm(x, self.final_norm, c.norm_eps), fresh if keep_kv else cache
