"""Shared parts of the encoders: the sizes of every configuration, layer norm, attention, the scan over layers, the head.

Letters: R rows (texts), T tokens, S keys, V vocabulary, D width, H heads, C head width, F hidden width of the MLP, L layers.

Parameters of layers are stacked [L, ...]. Tensors are computed in `config.dtype`; norms, softmax and the head in float32.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from meal_jax.models.attention import MASKED
from meal_jax.models.lora import Linear, Lora
from meal_jax.models.transformer import REMAT

ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,  # the tanh approximation, under three names
    "gelu_fast": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes and switches of every family; hashable, so that it can be a static argument.

    Attributes:
      family: config.json's model_type; the model does not depend on it.
      vocab_size: V.
      width: D.
      layers: L.
      heads: H, a divisor of D.
      hidden: F.
      positions: max number of tokens of a text.
      labels: logits per text.
      pad: id that fills short rows; any id works, since padding is masked.
      activation: of the MLP, a key of ACTIVATIONS.
      norm_eps: added to the variance in layer norm.
      dtype: compute type, "float32" or "bfloat16".
      param_dtype: storage type of the weights; norms and the head are stored in float32.
      remat: what the backward pass keeps, as in TransformerConfig.
      lora: adapters, without dropout, or None.
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    labels: int
    pad: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "none"
    lora: Lora | None = None

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}.")
        if self.labels < 1:
            raise ValueError(f"labels={self.labels} must be at least 1.")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is not one of {sorted(REMAT)}.")
        if self.lora is not None and self.lora.dropout:
            raise ValueError("Classifiers draw no dropout; set the adapters' dropout to 0.")


class Norm(nn.Module):
    """Layer norm of x [..., D] with a scale and a bias, in float32; returns x's type."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


def table(module: nn.Module, name: str, rows: int) -> jax.Array:
    """A table of embeddings [rows, D] among a module's parameters, in the compute type."""
    c = module.config
    return module.param(name, nn.initializers.normal(0.02), (rows, c.width), jnp.dtype(c.param_dtype)).astype(c.dtype)


def linear(c: EncoderConfig, name: str, features: int) -> Linear:
    """An affine layer [..., D] → [..., features]."""
    return Linear(
        features, c.lora, use_bias=True, dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype), name=name
    )


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., D] to [..., H, C]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """softmax(scale · q k + bias) v.

    Args:
      q: [R, T, H, C], already scaled.
      k, v: [R, S, H, C].
      mask: bool, broadcastable to [R, 1, T, S]; True where the query attends. A query without any key (in a row of padding
        only) gets finite numbers.
      bias: [R, H, T, S] float32, added to the scores, or None.

    Returns:
      [R, T, D]. The softmax is float32.
    """
    scores = jnp.einsum("rthc,rshc->rhts", q, k, preferred_element_type=jnp.float32)
    scores = scores if bias is None else scores + bias
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(v.dtype)
    out = jnp.einsum("rhts,rshc->rthc", weights, v)
    return out.reshape(*out.shape[:-2], -1)


class Attention(nn.Module):
    """Multi-head attention of x [R, T, D] over `source` [R, S, D], by default x itself."""

    config: EncoderConfig
    heads: int

    @nn.compact
    def __call__(self, x, mask, source=None):
        c = self.config
        source = x if source is None else source
        q = split_heads(linear(c, "q", c.width)(x), self.heads)
        k = split_heads(linear(c, "k", c.width)(source), self.heads)
        v = split_heads(linear(c, "v", c.width)(source), self.heads)
        return linear(c, "o", c.width)(attend(q * q.shape[-1] ** -0.5, k, v, mask))


class Mlp(nn.Module):
    config: EncoderConfig
    hidden: int

    @nn.compact
    def __call__(self, x):
        c = self.config
        return linear(c, "down", c.width)(ACTIVATIONS[c.activation](linear(c, "up", self.hidden)(x)))


class PostNormBlock(nn.Module):
    """The layer of BERT and of BART's encoder: the norm comes after each residual sum."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        x = Norm(c.norm_eps, name="attention_norm")(x + Attention(c, c.heads, name="attention")(x, mask))
        x = Norm(c.norm_eps, name="mlp_norm")(x + Mlp(c, c.hidden, name="mlp")(x))
        return x, None


def stack(block: type[nn.Module], c: EncoderConfig, layers: int) -> nn.Module:
    """`layers` blocks in a scan: a module (x, *others) → (x, None) whose parameters are stacked under "layers"."""
    if c.remat != "none":
        block = nn.remat(block, prevent_cse=False, policy=REMAT[c.remat])
    scan = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=layers)
    return scan(c, name="layers")


def last(chosen: jax.Array) -> jax.Array:
    """Index [R] of the last True of each row of [R, T]; 0 in a row without any."""
    return jnp.max(jnp.where(chosen, jnp.arange(chosen.shape[1]), 0), axis=1)


def state_at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [R, T, D] at one token of each row, index [R]: [R, D]."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def classify(c, state: jax.Array, pooler: str | None = None) -> jax.Array:
    """Logits [R, labels] of states [R, D]: W state, or with a pooler W act(U state + u) + w. In float32."""
    state = state.astype(jnp.float32)
    if pooler is not None:
        state = ACTIVATIONS[pooler](Linear(c.width, use_bias=True, name="pooler")(state))
    return Linear(c.labels, use_bias=pooler is not None, name="classifier")(state)
