"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, a gated MLP.

One decoder serves Llama, Mistral, Qwen, Gemma, SmolLM3, OLMo 2 and Granite: `TransformerConfig` says what differs, and what is
switched off costs nothing. Layers are scanned, so what differs from layer to layer (a sliding window, its rotary base, whether
it rotates) is chosen inside the scan by a flag for each layer.

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

from meal_jax.models.attention import ATTENTION, KeyValues, attend, attend_fused, softcap
from meal_jax.models.decode_attention import attend_one
from meal_jax.models.lora import Linear, Lora
from meal_jax.models.rotary import RopeScaling, rope_tables, rotate
from meal_jax.runtime.sharding import over_batch

FEW = 64  # rows up to which a CPU makes logits faster with the table as left operand; to other compilers it is the same


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
      rope_scaling: how they are lowered, or None.
      local_rope_base: base of the frequencies of local layers, which are not scaled; None: as all layers.
      rotated: for each layer, whether queries and keys are rotated (SmolLM3); () where all are.
      window: positions that a local layer sees, its own among them; 0 where no layer is local.
      local: for each layer, whether it is local; () where none is.
      norm_eps: added to the mean square in RMSNorm.
      norm_plus_one: norms multiply by 1 + their scale (Gemma).
      pre_norms: norms before attention and before the MLP; without them there are post_norms (OLMo 2).
      post_norms: norms after attention and after the MLP too, before their sums (Gemma, OLMo 2).
      qk_norm: a norm over the features of each query head and key head, before rotation (Qwen 3, Gemma 3).
      qk_norm_joint: that norm is over all query heads together, and over all key heads (OLMo 2).
      qkv_bias: queries, keys and values have biases (Qwen 2).
      query_scale: queries are multiplied by it; None: by head_dim ** -0.5.
      attention_softcap: c, scores s become c · tanh(s / c) (Gemma 2); None leaves them.
      logit_softcap: the same for logits.
      activation: of the MLP's gate, "silu" or "gelu_tanh".
      logit_divisor: logits are divided by it (Granite).
      scaled_embedding: token embeddings are multiplied by the root of the width (Gemma).
      embedding_multiplier: all embeddings are multiplied by it, a prefix's too (Granite).
      residual_multiplier: what attention and the MLP add is multiplied by it (Granite).
      tied: the output projection is the transposed embedding.
      family: the name that config.json gives the model; it decides nothing here.
      dtype: compute type, "float32" or "bfloat16"; norms, softmax and logits are float32 either way.
      param_dtype: storage type of the base weights.
      attention: over many tokens, "plain" or "cudnn", see attention.py.
      remat: what the backward pass keeps: "none" (everything), "dots" (matrix products), "full" (layer inputs only).
      unroll: layers per iteration of the scan over layers; more compiles longer.
      unstack_layers: each layer has parameters, keys and values of its own, and nothing is scanned: a rollout's choice, see
        rollout/weights.py.
      decoding: how a decoded token attends, "plain" or "triton", see decode_attention.py: a rollout's choice too.
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
    rope_scaling: RopeScaling | None = None
    local_rope_base: float | None = None
    rotated: tuple[bool, ...] = ()
    window: int = 0
    local: tuple[bool, ...] = ()
    norm_eps: float = 1e-5
    norm_plus_one: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: bool = False
    qk_norm_joint: bool = False
    qkv_bias: bool = False
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    activation: str = "silu"
    logit_divisor: float = 1.0
    scaled_embedding: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    tied: bool = True
    family: str = "llama"
    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "plain"
    remat: str = "none"
    unroll: int = 1
    unstack_layers: bool = False
    decoding: str = "plain"
    lora: Lora | None = None

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}.")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions rotate pairs of features.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is not one of {sorted(REMAT)}.")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention={self.attention!r} is not one of {', '.join(ATTENTION)}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is not one of {sorted(ACTIVATIONS)}.")
        for name in ("local", "rotated"):
            if len(getattr(self, name)) not in (0, self.layers):
                raise ValueError(f"{name} has {len(getattr(self, name))} flags for {self.layers} layers.")
        if not (self.pre_norms or self.post_norms):
            raise ValueError("pre_norms and post_norms are both off: a layer without norms is not implemented.")
        if any(self.local) != (self.window > 0):
            raise ValueError(f"window={self.window} and local={self.local}: local layers and a window go together.")

    @property
    def embedding_scale(self) -> float:
        """What the embeddings of tokens are multiplied by."""
        return (self.width**0.5 if self.scaled_embedding else 1.0) * self.embedding_multiplier


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": lambda x: nn.gelu(x, approximate=True)}


class Prompt(NamedTuple):
    """What a candidate attends to of its prompt.

    Attributes:
      kv: KeyValues [L, B, S, G, C].
      mask: [B, S] bool, False at padding.
    """

    kv: KeyValues
    mask: jax.Array


class View(NamedTuple):
    """What the layers of one kind, global or local, take positions from and may look at.

    Attributes:
      rope: cos and sin [B, N, T, 1, C/2], as from `rope_tables`.
      mask: bool, broadcastable to [B, N, T, S]: a candidate's own keys.
      prompt_mask: bool, broadcastable to [B, N, T, S']: its prompt's keys; None without a prompt.
    """

    rope: tuple[jax.Array, jax.Array]
    mask: jax.Array
    prompt_mask: jax.Array | None


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, plus_one: bool = False) -> jax.Array:
    """x / rms(x) · scale, in float32 (a sum of squares in bfloat16 loses half its digits); returns x's type."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    scale = scale.astype(jnp.float32)
    return (y * (1.0 + scale if plus_one else scale)).astype(x.dtype)


def views(
    config: TransformerConfig,
    positions: jax.Array,
    mask: jax.Array,
    prompt_mask: jax.Array | None,
    write_at: jax.Array | int,
    steps: int,
    keys: int,
) -> tuple[View, ...]:
    """The views that the layers choose from: (all layers',), or (the global layers', the local layers').

    A local layer sees keys less than `window` positions back. Among own keys that is a distance of indices; the prompt's
    are padded on the left, so their positions count real tokens.

    Args:
      config: of the decoder.
      positions: [B, N, T] int, or broadcastable.
      mask: bool, broadcastable to [B, N, T, S].
      prompt_mask: [B, S'] bool, or None.
      write_at: index in S of the first query's own key.
      steps: T.
      keys: S.
    """
    c = config
    visible = None if prompt_mask is None else prompt_mask[:, None, None, :]
    everywhere = View(rope_tables(positions, c.head_dim, c.rope_base, c.rope_scaling), mask, visible)
    if not any(c.local):
        return (everywhere,)
    rope = everywhere.rope
    if c.local_rope_base is not None:
        rope = rope_tables(positions, c.head_dim, c.local_rope_base)
    back = (write_at + jnp.arange(steps))[:, None] - jnp.arange(keys)  # [T, S]
    if prompt_mask is not None:
        index = jnp.cumsum(prompt_mask, axis=-1) - 1
        visible = visible & (positions[..., None] - index[:, None, None, :] < c.window)
    nearby = View(rope, mask & (back < c.window), visible)
    return (nearby,) if all(c.local) else (everywhere, nearby)


def cache_length(cache: KeyValues | tuple[KeyValues, ...]) -> int:
    """S of a cache, its layers stacked or apart."""
    return jax.tree.leaves(cache)[0].shape[3]


def layer_name(i: int) -> str:
    """Where a layer's parameters are if the layers are apart; stacked, all are in "layers"."""
    return f"layers_{i}"


def norm(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """RMSNorm over x's last dimension with the module's parameter `name`; for `__call__` of a module with a config."""
    c = module.config
    init = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
    return rms_norm(x, module.param(name, init, (x.shape[-1],)), c.norm_eps, c.norm_plus_one)


def add(module: nn.Module, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """x and the result y of attention or the MLP, normed under `name` where there are post_norms; as `norm` otherwise."""
    c = module.config
    y = norm(module, name, y) if c.post_norms else y
    return x + (y if c.residual_multiplier == 1.0 else y * jnp.asarray(c.residual_multiplier, y.dtype))


class Attention(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, view, cache, layer, write_at, prompt, deterministic, scale):
        c = self.config

        def linear(name, features, bias=False):
            dtypes = {"dtype": jnp.dtype(c.dtype), "param_dtype": jnp.dtype(c.param_dtype)}
            return Linear(features, c.lora, bias, **dtypes, name=name)

        lead, how = x.shape[:-1], (deterministic, scale)
        q = linear("q", c.heads * c.head_dim, c.qkv_bias)(x, *how)
        k = linear("k", c.kv_heads * c.head_dim, c.qkv_bias)(x, *how)
        v = linear("v", c.kv_heads * c.head_dim, c.qkv_bias)(x, *how)
        if c.qk_norm_joint:
            q, k = norm(self, "q_norm", q), norm(self, "k_norm", k)
        q, k, v = (a.reshape(*lead, -1, c.head_dim) for a in (q, k, v))
        if c.qk_norm and not c.qk_norm_joint:
            q, k = norm(self, "q_norm", q), norm(self, "k_norm", k)
        q, k = rotate(q, view.rope), rotate(k, view.rope)
        own = fresh = KeyValues(k, v)
        if cache is not None:
            # The cache rides in the carry of the scan over layers and of the decoding loop, so XLA updates it in place.
            start = [jnp.asarray(i, jnp.int32) for i in (layer, 0, 0, write_at, 0, 0)]
            cache = jax.tree.map(lambda all_, new: jax.lax.dynamic_update_slice(all_, new[None], start), cache, fresh)
            own = jax.tree.map(lambda all_: jax.lax.dynamic_index_in_dim(all_, layer, keepdims=False), cache)
        way = attend_fused if c.attention == "cudnn" and cache is None else attend
        if c.decoding == "triton" and cache is not None and x.shape[2] == 1:
            way = attend_one
        y = way(q, own, view.mask, prompt, view.prompt_mask, c.query_scale, c.attention_softcap)
        y = linear("o", c.width)(y.reshape(*lead, c.heads * c.head_dim), *how)
        return y, cache, fresh


class Mlp(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, deterministic, scale):
        c, how = self.config, (deterministic, scale)

        def linear(name, features):
            dtypes = {"dtype": jnp.dtype(c.dtype), "param_dtype": jnp.dtype(c.param_dtype)}
            return Linear(features, c.lora, **dtypes, name=name)

        gate = ACTIVATIONS[c.activation](linear("gate", c.hidden)(x, *how))
        return linear("down", c.width)(gate * linear("up", c.hidden)(x, *how), *how)


class Block(nn.Module):
    config: TransformerConfig
    keep_kv: bool
    deterministic: bool  # an attribute, since remat makes tracers of arguments and dropout must know it while tracing

    @nn.compact
    def __call__(self, carry, scanned, shared):
        c = self.config
        x, cache = carry
        layer, local, rotates, prompt = scanned
        (view, *nearby), write_at, scale = shared
        if nearby:
            view = jax.tree.map(lambda a, b: jnp.where(local, a, b), nearby[0], view)
        if c.rotated:
            cos, sin = view.rope
            view = view._replace(rope=(jnp.where(rotates, cos, 1.0), jnp.where(rotates, sin, 0.0)))
        y = norm(self, "attention_norm", x) if c.pre_norms else x
        y, cache, fresh = Attention(c, name="attention")(
            y, view, cache, layer, write_at, prompt, self.deterministic, scale
        )
        x = add(self, "attention_post_norm", x, y)
        y = norm(self, "mlp_norm", x) if c.pre_norms else x
        y = Mlp(c, name="mlp")(y, self.deterministic, scale)
        x = add(self, "mlp_post_norm", x, y)
        if cache is None:
            x = over_batch(x)
        return (x, cache), fresh if self.keep_kv else None


class Transformer(nn.Module):
    """Embedding, L scanned blocks, final norm, output projection. Parameters of the blocks are stacked [L, ...].

    If `config.unstack_layers`, nothing is scanned: what has L layers above and below is then a tuple of L with one layer
    each, and parameters are in `layer_name`.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.width**-0.5)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width), jnp.dtype(c.param_dtype))
        ones = nn.initializers.zeros if c.norm_plus_one else nn.initializers.ones
        self.final_norm = self.param("final_norm", ones, (c.width,))
        if not c.tied:
            self.output = self.param("output", init, (c.vocab_size, c.width), jnp.dtype(c.param_dtype))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Token ids [...] to [..., D] in the compute type."""
        c = self.config
        x = self.embedding[tokens].astype(c.dtype)
        return x * jnp.asarray(c.embedding_scale, c.dtype) if c.embedding_scale != 1.0 else x

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Last hidden state [..., D] to logits [..., V] in float32."""
        table = self.embedding if self.config.tied else self.output
        table = table.astype(self.config.dtype)
        if hidden.size // self.config.width <= FEW:
            logits = jnp.einsum("vd,...d->v...", table, hidden, preferred_element_type=jnp.float32)
            logits = jnp.moveaxis(logits, 0, -1)
        else:
            logits = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
        if self.config.logit_divisor != 1.0:
            logits = logits / self.config.logit_divisor
        return softcap(logits, self.config.logit_softcap)

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
        scale: jax.Array | None = None,
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
          scale: [B, N, 1, R], what the inner features of every adapter are multiplied by; None leaves them.

        Returns:
          hidden [B, N, T, D] after the final norm, and the updated cache, or the fresh keys and values if `keep_kv`.
        """
        c = self.config
        steps = x.shape[2]
        keys = steps if cache is None else cache_length(cache)
        if cache is None:  # a pass over many tokens
            x = over_batch(x)
        choices = views(c, positions, mask, None if prompt is None else prompt.mask, write_at, steps, keys)
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[c.remat])
        shared = (choices, write_at, scale)
        if c.unstack_layers:
            x, cache, fresh = self._one_by_one(block, x, cache, prompt, keep_kv, deterministic, shared)
        else:
            blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=c.layers,
                unroll=c.unroll,
            )(c, keep_kv, deterministic, name="layers")
            local = jnp.asarray(c.local) if len(choices) > 1 else None
            rotates = jnp.asarray(c.rotated) if c.rotated else None
            scanned = (jnp.arange(c.layers), local, rotates, None if prompt is None else prompt.kv)
            (x, cache), fresh = blocks((x, cache), scanned, shared)
        return rms_norm(x, self.final_norm, c.norm_eps, c.norm_plus_one), fresh if keep_kv else cache

    def _one_by_one(self, block, x, cache, prompt, keep_kv, deterministic, shared):
        """The blocks without a scan, for `config.unstack_layers`: x, and per layer its cache and its fresh keys and values."""
        c = self.config
        caches, fresh = list(cache or [None] * c.layers), [None] * c.layers
        for i in range(c.layers):
            kv = None if prompt is None else jax.tree.map(lambda a: a[0], prompt.kv[i])
            carry = (x, caches[i])
            (x, caches[i]), keys_values = block(c, keep_kv, deterministic, name=layer_name(i))(
                carry, (0, bool(c.local and c.local[i]), bool(not c.rotated or c.rotated[i]), kv), shared
            )
            fresh[i] = jax.tree.map(lambda a: a[None], keys_values)
        return x, None if cache is None else tuple(caches), tuple(fresh)
