"""GPT-2 with a classification head on the last token (transformers' GPT2ForSequenceClassification).

Letters as in layers.py.

The last token is the last one that the mask keeps. torch takes the last one whose id is not `pad_token_id`, and refuses
batches if there is none. If pad is also the end token (GPT-2 has no other), torch ignores end tokens that belong to the text;
here they count.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from meal_jax.classifiers import layers
from meal_jax.classifiers.family import Family, norm_weights, token_id
from meal_jax.hf.weight_names import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.EncoderConfig):
    """GPT-2's; nothing but the shared fields."""


class Block(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        x = x + Attention(c, name="attention")(layers.Norm(c.norm_eps, name="attention_norm")(x), mask)
        x = x + layers.Mlp(c, c.hidden, name="mlp")(layers.Norm(c.norm_eps, name="mlp_norm")(x))
        return x, None


class Attention(nn.Module):
    """Self-attention whose query, key and value are one matrix [D, 3 D], as GPT-2 stores it."""

    config: Config

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        q, k, v = (
            layers.split_heads(part, c.heads) for part in jnp.split(layers.linear(c, "qkv", 3 * c.width)(x), 3, -1)
        )
        return layers.linear(c, "o", c.width)(layers.attend(q * q.shape[-1] ** -0.5, k, v, mask))


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens, mask, types):
        """Tokens [R, T], mask [R, T] bool (right padding), types unused: logits [R, labels]."""
        c, length = self.config, tokens.shape[1]
        x = (
            layers.table(self, "embedding", c.vocab_size)[tokens]
            + layers.table(self, "positions", c.positions)[:length]
        )
        causal = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, None, :]
        x, _ = layers.stack(Block, c, c.layers)(x, causal)
        x = layers.Norm(c.norm_eps, name="final_norm")(layers.state_at(x, layers.last(mask)))
        return layers.classify(c, x)


def _conv1d(path: str, name: str) -> tuple[Weight, ...]:
    """A layer that torch calls Conv1D: its matrix is [in, out], like the parameter."""
    return Weight(f"{path}/kernel", f"{name}.weight"), Weight(f"{path}/bias", f"{name}.bias")


H = "transformer.h.{}"
WEIGHTS = (
    Weight("embedding", "transformer.wte.weight"),
    Weight("positions", "transformer.wpe.weight"),
    *norm_weights("layers/attention_norm", f"{H}.ln_1"),
    *_conv1d("layers/attention/qkv", f"{H}.attn.c_attn"),
    *_conv1d("layers/attention/o", f"{H}.attn.c_proj"),
    *norm_weights("layers/mlp_norm", f"{H}.ln_2"),
    *_conv1d("layers/mlp/up", f"{H}.mlp.c_fc"),
    *_conv1d("layers/mlp/down", f"{H}.mlp.c_proj"),
    *norm_weights("final_norm", "transformer.ln_f"),
    Weight("classifier/kernel", "score.weight", True),
)


def fields(c) -> dict:
    return {
        "vocab_size": c["vocab_size"],
        "width": c["n_embd"],
        "layers": c["n_layer"],
        "heads": c["n_head"],
        "hidden": c.get("n_inner") or 4 * c["n_embd"],
        "positions": c["n_positions"],
        "pad": token_id(c, "pad_token_id", token_id(c, "eos_token_id", 0)),
        "activation": c.get("activation_function", "gelu_new"),
        "norm_eps": c.get("layer_norm_epsilon", 1e-5),
    }


def unimplemented(c) -> list[str]:
    bad = [name for name in ("add_cross_attention", "scale_attn_by_inverse_layer_idx") if c.get(name)]
    return bad + (["scale_attn_weights false"] if not c.get("scale_attn_weights", True) else [])


def entries(c: Config) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "n_embd": c.width,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.hidden,
        "n_positions": c.positions,
        "pad_token_id": c.pad,
        "activation_function": c.activation,
        "layer_norm_epsilon": c.norm_eps,
    }


FAMILY = Family(
    name="gpt2",
    stem="GPT2",
    prefix="transformer.",
    config=Config,
    model=Model,
    weights=lambda config: WEIGHTS,
    fields=fields,
    unimplemented=unimplemented,
    entries=entries,
)
