"""DeBERTa v2 and v3 with a classification head on the first token (transformers' DebertaV2ForSequenceClassification).

Letters as in layers.py; S rows of relative positions to either side.

Disentangled attention (He et al. 2021, arXiv 2006.03654) scores a query at i and a key at j by content and by distance,

    (q_i · k_j + q_i · K[δ(i − j)] + k_j · Q[δ(i − j)]) / √(3 C),

where K and Q are projections of one table of 2 S relative embeddings and δ puts distances into buckets that grow with the
logarithm of the distance. Only distances matter, so K and Q are laid out once per distance, [2 T − 1, D], and a shift of rows
moves the products to (i, j). So there is no gather to compute or differentiate.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.classifiers import layers
from meal_jax.classifiers.family import Family, linear_weights, norm_weights, token_id
from meal_jax.hf.weight_names import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.EncoderConfig):
    """DeBERTa's.

    Attributes:
      terms: of the position scores, out of "c2p" (q_i · K) and "p2c" (k_j · Q).
      buckets: S, or 0 for one row per distance up to `max_distance`.
      max_distance: the distance that falls into the last bucket.
      shared: the layer's key and query matrices also project K and Q; else K and Q have their own.
      relative_norm: the table of relative embeddings goes through a layer norm.
      absolute: absolute positions are added to the input.
      types: number of token types; 0 for no table of them.
      pooler: activation of the head.
    """

    terms: tuple[str, ...] = ("c2p", "p2c")
    buckets: int = 256
    max_distance: int = 512
    shared: bool = True
    relative_norm: bool = True
    absolute: bool = False
    types: int = 0
    pooler: str = "gelu"


def bucket(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance (DeBERTa v2's δ): itself up to buckets / 2, then by logarithm; `max_distance` − 1 in the last.

    Args:
      distance: [...] int.
      buckets: S; 0 for no buckets.
      max_distance: the scale's end; larger distances get buckets beyond S, which the caller clips.

    Returns:
      [...] int, odd in the distance. Computed in float32 as in torch: at a bucket's edge, rounding decides.
    """
    if not buckets:
        return distance
    half = buckets // 2
    size = np.maximum(np.abs(distance), half)  # smaller distances keep their value
    scale = np.log(np.float32((max_distance - 1) / half))
    log = np.log(size.astype(np.float32) / np.float32(half)) / scale * np.float32(half - 1)
    far = np.sign(distance) * (np.ceil(log).astype(np.int64) + half)
    return np.where(np.abs(distance) <= half, distance, far)


def rows_by_distance(config: Config, length: int) -> np.ndarray:
    """Row of the relative table for each distance −(T − 1) … T − 1 of a query from a key: [2 T − 1] int."""
    span = config.buckets or config.max_distance
    return np.clip(bucket(np.arange(1 - length, length), config.buckets, config.max_distance) + span, 0, 2 * span - 1)


def shift(x: jax.Array) -> jax.Array:
    """x [..., T, 2 T − 1] to y [..., T, T] with y[i, j] = x[i, T − 1 − i + j]."""
    *lead, length, width = x.shape
    x = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [(0, 1)]).reshape(*lead, length * (width + 1))
    return x[..., : length * width].reshape(*lead, length, width)[..., length - 1 :]


class Attention(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, mask, relative):
        c = self.config
        project = {name: layers.linear(c, name, c.width) for name in "qkv"}
        q, k, v = (layers.split_heads(project[name](x), c.heads) for name in "qkv")
        scale = (q.shape[-1] * (1 + len(c.terms))) ** -0.5
        bias = jnp.float32(0)
        if "c2p" in c.terms:
            to_key = project["k"] if c.shared else layers.linear(c, "position_k", c.width)
            # Along a query's row the key index rises and the distance falls, hence the reversed order.
            keys = layers.split_heads(to_key(relative[::-1]), c.heads)
            bias += shift(jnp.einsum("rthc,jhc->rhtj", q, keys, preferred_element_type=jnp.float32))
        if "p2c" in c.terms:
            to_query = project["q"] if c.shared else layers.linear(c, "position_q", c.width)
            queries = layers.split_heads(to_query(relative), c.heads)
            by_key = shift(jnp.einsum("rshc,jhc->rhsj", k, queries, preferred_element_type=jnp.float32))
            bias += jnp.swapaxes(by_key, -1, -2)
        return layers.linear(c, "o", c.width)(layers.attend(q * scale, k, v, mask, bias * scale))


class Block(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, mask, relative):
        c = self.config
        x = layers.Norm(c.norm_eps, name="attention_norm")(x + Attention(c, name="attention")(x, mask, relative))
        x = layers.Norm(c.norm_eps, name="mlp_norm")(x + layers.Mlp(c, c.hidden, name="mlp")(x))
        return x, None


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens, mask, types):
        """Tokens [R, T], mask [R, T] bool (right padding), token types [R, T]: logits [R, labels]."""
        c, length = self.config, tokens.shape[1]
        x = layers.table(self, "embedding", c.vocab_size)[tokens]
        if c.absolute:
            x += layers.table(self, "positions", c.positions)[:length]
        if c.types:
            x += layers.table(self, "types", c.types)[jnp.minimum(types, c.types - 1)]
        x = layers.Norm(c.norm_eps, name="embedding_norm")(x)
        relative = layers.table(self, "relative", 2 * (c.buckets or c.max_distance))
        if c.relative_norm:
            relative = layers.Norm(c.norm_eps, name="relative_norm")(relative)
        relative = relative[rows_by_distance(c, length)]  # [2 T − 1, D]
        x, _ = layers.stack(Block, c, c.layers)(x, mask[:, None, None, :], relative)
        return layers.classify(c, x[:, 0], c.pooler)


E, A = "deberta.embeddings", "deberta.encoder.layer.{}.attention"
WEIGHTS = (
    Weight("embedding", f"{E}.word_embeddings.weight"),
    Weight("positions", f"{E}.position_embeddings.weight"),
    Weight("types", f"{E}.token_type_embeddings.weight"),
    *norm_weights("embedding_norm", f"{E}.LayerNorm"),
    Weight("relative", "deberta.encoder.rel_embeddings.weight"),
    *norm_weights("relative_norm", "deberta.encoder.LayerNorm"),
    *linear_weights("layers/attention/q", f"{A}.self.query_proj"),
    *linear_weights("layers/attention/k", f"{A}.self.key_proj"),
    *linear_weights("layers/attention/v", f"{A}.self.value_proj"),
    *linear_weights("layers/attention/position_q", f"{A}.self.pos_query_proj"),
    *linear_weights("layers/attention/position_k", f"{A}.self.pos_key_proj"),
    *linear_weights("layers/attention/o", f"{A}.output.dense"),
    *norm_weights("layers/attention_norm", f"{A}.output.LayerNorm"),
    *linear_weights("layers/mlp/up", "deberta.encoder.layer.{}.intermediate.dense"),
    *linear_weights("layers/mlp/down", "deberta.encoder.layer.{}.output.dense"),
    *norm_weights("layers/mlp_norm", "deberta.encoder.layer.{}.output.LayerNorm"),
    *linear_weights("pooler", "pooler.dense"),
    *linear_weights("classifier", "classifier"),
)


def _split(value: str | list[str] | None) -> list[str]:
    """Settings such as pos_att_type are lists, or one text separated by bars."""
    value = value.lower().split("|") if isinstance(value, str) else value or []
    return [part.strip() for part in value]


def fields(c) -> dict:
    max_distance = c.get("max_relative_positions", -1)
    return {
        "vocab_size": c["vocab_size"],
        "width": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "positions": c["max_position_embeddings"],
        "pad": token_id(c, "pad_token_id", 0),
        "activation": c.get("hidden_act", "gelu"),
        "norm_eps": c.get("layer_norm_eps", 1e-7),
        "terms": tuple(sorted(_split(c.get("pos_att_type")))),
        "buckets": max(c.get("position_buckets", -1), 0),
        "max_distance": max_distance if max_distance >= 1 else c["max_position_embeddings"],
        "shared": bool(c.get("share_att_key", False)),
        "relative_norm": "layer_norm" in _split(c.get("norm_rel_ebd", "none")),
        "absolute": bool(c.get("position_biased_input", True)),
        "types": c.get("type_vocab_size", 0),
        "pooler": c.get("pooler_hidden_act", "gelu"),
    }


def unimplemented(c) -> list[str]:
    bad = [] if c.get("relative_attention", False) else ["relative_attention false"]
    bad += [f"pos_att_type {term}" for term in _split(c.get("pos_att_type")) if term not in ("c2p", "p2c")]
    bad += [f"conv_kernel_size {c['conv_kernel_size']}"] if c.get("conv_kernel_size", 0) > 0 else []
    width = c.get("hidden_size")
    bad += [f"{name} {c[name]}" for name in ("embedding_size", "pooler_hidden_size") if c.get(name, width) != width]
    if "attention_head_size" in c and c["attention_head_size"] * c.get("num_attention_heads", 1) != width:
        bad.append(f"attention_head_size {c['attention_head_size']}")
    pooler = c.get("pooler_hidden_act", "gelu")
    return bad + ([f"pooler_hidden_act {pooler}"] if pooler not in layers.ACTIVATIONS else [])


def entries(c: Config) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.positions,
        "pad_token_id": c.pad,
        "hidden_act": c.activation,
        "layer_norm_eps": c.norm_eps,
        "relative_attention": True,
        "pos_att_type": list(c.terms),
        "position_buckets": c.buckets or -1,
        "max_relative_positions": c.max_distance,
        "share_att_key": c.shared,
        "norm_rel_ebd": "layer_norm" if c.relative_norm else "none",
        "position_biased_input": c.absolute,
        "type_vocab_size": c.types,
        "pooler_hidden_act": c.pooler,
        "pooler_hidden_size": c.width,
    }


FAMILY = Family(
    name="deberta-v2",
    stem="DebertaV2",
    prefix="deberta.",
    config=Config,
    model=Model,
    weights=lambda config: WEIGHTS,
    fields=fields,
    unimplemented=unimplemented,
    entries=entries,
    redundant=r"^(deberta\.)?embeddings\.position_embeddings\.",  # v3's files hold it, but its input does not use it
)
