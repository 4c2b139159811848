"""Decoders of models/transformer.py with a classification head on the last token (LlamaForSequenceClassification, …).

Letters as in layers.py.

The last token is the last one that the mask keeps; torch takes the last one whose id is not `pad_token_id`, and refuses
batches if there is none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from meal_jax.classifiers import layers
from meal_jax.classifiers.family import Family, token_id
from meal_jax.hf import families, weight_names
from meal_jax.hf.weight_names import Weight
from meal_jax.models.lora import Lora
from meal_jax.models.transformer import Transformer, TransformerConfig

STEMS = {"gemma3_text": "Gemma3Text"}  # the others have the stem of their language model's class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder and its head.

    Attributes:
      decoder: its configuration; its output projection, if any, is not used.
      labels, positions, pad: as in EncoderConfig.
    """

    decoder: TransformerConfig
    labels: int
    positions: int
    pad: int = 0

    def __post_init__(self):
        if self.labels < 1:
            raise ValueError(f"labels={self.labels} must be at least 1.")
        if self.lora is not None and self.lora.dropout:
            raise ValueError("Classifiers draw no dropout; set the adapters' dropout to 0.")

    @property
    def family(self) -> str:
        return self.decoder.family

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def dtype(self) -> str:
        return self.decoder.dtype

    @property
    def param_dtype(self) -> str:
        return self.decoder.param_dtype

    @property
    def lora(self) -> Lora | None:
        return self.decoder.lora


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens, mask, types):
        """Tokens [R, T], mask [R, T] bool (right padding), types unused: logits [R, labels]."""
        c, length = self.config, tokens.shape[1]
        decoder = Transformer(dataclasses.replace(c.decoder, tied=True), name="transformer")
        causal = jnp.tril(jnp.ones((length, length), bool)) & mask[:, None, None, :]
        x, _ = decoder(decoder.embed(tokens)[:, None], jnp.arange(length)[None, None], causal)
        return layers.classify(c, layers.state_at(x[:, 0], layers.last(mask)))


def weights(c: Config) -> tuple[Weight, ...]:
    rows = weight_names.weights(dataclasses.replace(c.decoder, tied=True))
    return (
        *(row._replace(path=f"transformer/{row.path}") for row in rows),
        Weight("classifier/kernel", "score.weight", True),
    )


def make_family(model_type: str, where: Any = "config.json") -> Family:
    """The family of classifiers on one of `families.FAMILIES`.

    Args:
      model_type: its name.
      where: the file, for messages.
    """
    base = families.FAMILIES[model_type]

    def config(decoder, labels, positions, pad, family=model_type, **settings):
        return Config(decoder=dataclasses.replace(decoder, **settings), labels=labels, positions=positions, pad=pad)

    def fields(c) -> dict:
        return {
            "decoder": families.parse({**c, "architectures": [base.architecture]}, where),
            "positions": c["max_position_embeddings"],
            "pad": token_id(c, "pad_token_id", token_id(c, "eos_token_id", 0)),
        }

    def entries(c: Config) -> dict:
        return families.entries(c.decoder) | {"max_position_embeddings": c.positions, "pad_token_id": c.pad}

    return Family(
        name=model_type,
        stem=STEMS.get(model_type, base.architecture.removesuffix("ForCausalLM")),
        prefix="model.",
        config=config,
        model=Model,
        weights=weights,
        fields=fields,
        unimplemented=lambda c: [],  # `families.parse` refuses them
        entries=entries,
    )
