"""BART with a classification head on the decoder's state at the last end token (BartForSequenceClassification).

Letters as in layers.py; the encoder and the decoder read the same text, so S = T.

The decoder reads the text shifted right by one after a start token, and its state at the last end token of the text is
classified. torch's class refuses a batch whose texts have no end token or different numbers of them; here a text without end
token is classified at its last token.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from meal_jax.classifiers import layers
from meal_jax.classifiers.family import Family, linear_weights, norm_weights, token_id
from meal_jax.hf.weight_names import Weight

OFFSET = 2  # BART's tables of positions start with two unused rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.EncoderConfig):
    """BART's; `layers`, `heads` and `hidden` are the encoder's.

    Attributes:
      decoder_layers, decoder_heads, decoder_hidden: the decoder's.
      start: first id that the decoder reads.
      end: id of the token whose last state is classified.
      scaled: embeddings are multiplied by √D.
    """

    decoder_layers: int
    decoder_heads: int
    decoder_hidden: int
    start: int = 2
    end: int = 2
    scaled: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.decoder_heads:
            raise ValueError(f"width={self.width} is not a multiple of decoder_heads={self.decoder_heads}.")


class DecoderBlock(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, causal, source, mask):
        c = self.config
        y = layers.Attention(c, c.decoder_heads, name="attention")(x, causal)
        x = layers.Norm(c.norm_eps, name="attention_norm")(x + y)
        y = layers.Attention(c, c.decoder_heads, name="cross")(x, mask, source)
        x = layers.Norm(c.norm_eps, name="cross_norm")(x + y)
        x = layers.Norm(c.norm_eps, name="mlp_norm")(x + layers.Mlp(c, c.decoder_hidden, name="mlp")(x))
        return x, None


class Encoder(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, mask):
        x = _positioned(self, x)
        return layers.stack(layers.PostNormBlock, self.config, self.config.layers)(x, mask)[0]


class Decoder(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, source, mask):
        x = _positioned(self, x)
        # The causal mask suffices: the state that is classified comes before all padding.
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        return layers.stack(DecoderBlock, self.config, self.config.decoder_layers)(x, causal, source, mask)[0]


def _positioned(module: nn.Module, x: jax.Array) -> jax.Array:
    c = module.config
    positions = layers.table(module, "positions", OFFSET + c.positions)
    return layers.Norm(c.norm_eps, name="embedding_norm")(x + positions[OFFSET : OFFSET + x.shape[1]])


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens, mask, types):
        """Tokens [R, T], mask [R, T] bool (right padding), types unused: logits [R, labels]."""
        c = self.config
        embedding = layers.table(self, "embedding", c.vocab_size) * (c.width**0.5 if c.scaled else 1)
        keys = mask[:, None, None, :]
        source = Encoder(c, name="encoder")(embedding[tokens], keys)
        shifted = jnp.concatenate([jnp.full_like(tokens[:, :1], c.start), tokens[:, :-1]], axis=1)
        x = Decoder(c, name="decoder")(embedding[shifted], source, keys)
        ends = mask & (tokens == c.end)
        index = jnp.where(ends.any(axis=1), layers.last(ends), layers.last(mask))
        return layers.classify(c, layers.state_at(x, index), "tanh")


def _attention_weights(path: str, name: str) -> tuple[Weight, ...]:
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return tuple(
        row
        for letter, projection in names.items()
        for row in linear_weights(f"{path}/{letter}", f"{name}.{projection}")
    )


def _half_weights(half: str) -> tuple[Weight, ...]:
    """The table of the encoder or the decoder; the encoder has no parameters for the rows of cross-attention."""
    path, name = f"{half}/layers", f"model.{half}.layers.{{}}"
    return (
        Weight(f"{half}/positions", f"model.{half}.embed_positions.weight"),
        *norm_weights(f"{half}/embedding_norm", f"model.{half}.layernorm_embedding"),
        *_attention_weights(f"{path}/attention", f"{name}.self_attn"),
        *norm_weights(f"{path}/attention_norm", f"{name}.self_attn_layer_norm"),
        *_attention_weights(f"{path}/cross", f"{name}.encoder_attn"),
        *norm_weights(f"{path}/cross_norm", f"{name}.encoder_attn_layer_norm"),
        *linear_weights(f"{path}/mlp/up", f"{name}.fc1"),
        *linear_weights(f"{path}/mlp/down", f"{name}.fc2"),
        *norm_weights(f"{path}/mlp_norm", f"{name}.final_layer_norm"),
    )


EMBEDDING = "model.shared.weight"
WEIGHTS = (
    Weight("embedding", EMBEDDING),
    *_half_weights("encoder"),
    *_half_weights("decoder"),
    *linear_weights("pooler", "classification_head.dense"),
    *linear_weights("classifier", "classification_head.out_proj"),
)


def fields(c) -> dict:
    return {
        "vocab_size": c["vocab_size"],
        "width": c["d_model"],
        "layers": c["encoder_layers"],
        "heads": c["encoder_attention_heads"],
        "hidden": c["encoder_ffn_dim"],
        "decoder_layers": c["decoder_layers"],
        "decoder_heads": c["decoder_attention_heads"],
        "decoder_hidden": c["decoder_ffn_dim"],
        "positions": c["max_position_embeddings"],
        "pad": token_id(c, "pad_token_id", 1),
        "start": token_id(c, "decoder_start_token_id", 2),
        "end": token_id(c, "eos_token_id", 2),
        "activation": c.get("activation_function", "gelu"),
        "scaled": bool(c.get("scale_embedding", False)),
    }


def unimplemented(c) -> list[str]:
    bad = [name for name in ("normalize_before", "add_final_layer_norm", "static_position_embeddings") if c.get(name)]
    return bad + [f"{name} false" for name in ("normalize_embedding", "tie_word_embeddings") if not c.get(name, True)]


def entries(c: Config) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "d_model": c.width,
        "encoder_layers": c.layers,
        "encoder_attention_heads": c.heads,
        "encoder_ffn_dim": c.hidden,
        "decoder_layers": c.decoder_layers,
        "decoder_attention_heads": c.decoder_heads,
        "decoder_ffn_dim": c.decoder_hidden,
        "max_position_embeddings": c.positions,
        "pad_token_id": c.pad,
        "decoder_start_token_id": c.start,
        "eos_token_id": c.end,
        "activation_function": c.activation,
        "scale_embedding": c.scaled,
        "is_encoder_decoder": True,
    }


FAMILY = Family(
    name="bart",
    stem="Bart",
    prefix="model.",
    config=Config,
    model=Model,
    weights=lambda config: WEIGHTS,
    fields=fields,
    unimplemented=unimplemented,
    entries=entries,
    copies={f"model.{half}.embed_tokens.weight": EMBEDDING for half in ("encoder", "decoder")},
)
