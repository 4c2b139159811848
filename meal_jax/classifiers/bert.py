"""BERT, RoBERTa and DistilBERT with a classification head on the first token (transformers' …ForSequenceClassification).

Letters as in layers.py.

They differ in three fields of one configuration: RoBERTa counts positions from its padding id + 1 and has one token type,
DistilBERT has no token types and a ReLU in its head where the others have tanh.

RoBERTa's torch class finds padding by id when it counts positions, this one by the mask. The two agree for texts without
padding ids.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from meal_jax.classifiers import layers
from meal_jax.classifiers.family import Family, linear_weights, norm_weights, token_id
from meal_jax.hf.weight_names import Weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(layers.EncoderConfig):
    """BERT's.

    Attributes:
      offset: row of the table of positions that the first token reads.
      types: number of token types; 0 for no table of them.
      pooler: activation of the head.
    """

    offset: int = 0
    types: int = 2
    pooler: str = "tanh"


class Model(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens, mask, types):
        """Tokens [R, T], mask [R, T] bool (right padding), token types [R, T]: logits [R, labels]."""
        c, length = self.config, tokens.shape[1]
        positions = layers.table(self, "positions", c.offset + c.positions)
        x = layers.table(self, "embedding", c.vocab_size)[tokens] + positions[c.offset : c.offset + length]
        if c.types:
            x += layers.table(self, "types", c.types)[jnp.minimum(types, c.types - 1)]
        x = layers.Norm(c.norm_eps, name="embedding_norm")(x)
        x, _ = layers.stack(layers.PostNormBlock, c, c.layers)(x, mask[:, None, None, :])
        return layers.classify(c, x[:, 0], c.pooler)


def _bert_weights(prefix: str, pooler: str, classifier: str) -> tuple[Weight, ...]:
    """The table of BERT and RoBERTa, which differ in the names of the head."""
    layer = f"{prefix}.encoder.layer.{{}}"
    return (
        Weight("embedding", f"{prefix}.embeddings.word_embeddings.weight"),
        Weight("positions", f"{prefix}.embeddings.position_embeddings.weight"),
        Weight("types", f"{prefix}.embeddings.token_type_embeddings.weight"),
        *norm_weights("embedding_norm", f"{prefix}.embeddings.LayerNorm"),
        *linear_weights("layers/attention/q", f"{layer}.attention.self.query"),
        *linear_weights("layers/attention/k", f"{layer}.attention.self.key"),
        *linear_weights("layers/attention/v", f"{layer}.attention.self.value"),
        *linear_weights("layers/attention/o", f"{layer}.attention.output.dense"),
        *norm_weights("layers/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *linear_weights("layers/mlp/up", f"{layer}.intermediate.dense"),
        *linear_weights("layers/mlp/down", f"{layer}.output.dense"),
        *norm_weights("layers/mlp_norm", f"{layer}.output.LayerNorm"),
        *linear_weights("pooler", pooler),
        *linear_weights("classifier", classifier),
    )


BERT_WEIGHTS = _bert_weights("bert", "bert.pooler.dense", "classifier")
ROBERTA_WEIGHTS = _bert_weights("roberta", "classifier.dense", "classifier.out_proj")
D = "distilbert.transformer.layer.{}"
DISTILBERT_WEIGHTS = (
    Weight("embedding", "distilbert.embeddings.word_embeddings.weight"),
    Weight("positions", "distilbert.embeddings.position_embeddings.weight"),
    *norm_weights("embedding_norm", "distilbert.embeddings.LayerNorm"),
    *linear_weights("layers/attention/q", f"{D}.attention.q_lin"),
    *linear_weights("layers/attention/k", f"{D}.attention.k_lin"),
    *linear_weights("layers/attention/v", f"{D}.attention.v_lin"),
    *linear_weights("layers/attention/o", f"{D}.attention.out_lin"),
    *norm_weights("layers/attention_norm", f"{D}.sa_layer_norm"),
    *linear_weights("layers/mlp/up", f"{D}.ffn.lin1"),
    *linear_weights("layers/mlp/down", f"{D}.ffn.lin2"),
    *norm_weights("layers/mlp_norm", f"{D}.output_layer_norm"),
    *linear_weights("pooler", "pre_classifier"),
    *linear_weights("classifier", "classifier"),
)


def _bert_fields(c) -> dict:
    return {
        "vocab_size": c["vocab_size"],
        "width": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "positions": c["max_position_embeddings"],
        "pad": token_id(c, "pad_token_id", 0),
        "activation": c.get("hidden_act", "gelu"),
        "norm_eps": c.get("layer_norm_eps", 1e-12),
        "types": c.get("type_vocab_size", 2),
    }


def _roberta_fields(c) -> dict:
    offset = token_id(c, "pad_token_id", 1) + 1
    return _bert_fields(c) | {
        "offset": offset,
        "positions": c["max_position_embeddings"] - offset,
        "pad": offset - 1,
    }


def _distilbert_fields(c) -> dict:
    return {
        "vocab_size": c["vocab_size"],
        "width": c["dim"],
        "layers": c["n_layers"],
        "heads": c["n_heads"],
        "hidden": c["hidden_dim"],
        "positions": c["max_position_embeddings"],
        "pad": token_id(c, "pad_token_id", 0),
        "activation": c.get("activation", "gelu"),
        "norm_eps": 1e-12,  # torch's class has it in code, not in its configuration
        "types": 0,
        "pooler": "relu",
    }


def _unimplemented(c) -> list[str]:
    bad = [name for name in ("is_decoder", "add_cross_attention") if c.get(name)]
    kind = c.get("position_embedding_type", "absolute")
    return bad + ([f"position_embedding_type {kind}"] if kind != "absolute" else [])


def _bert_entries(c: Config) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.offset + c.positions,
        "pad_token_id": c.pad,
        "hidden_act": c.activation,
        "layer_norm_eps": c.norm_eps,
        "type_vocab_size": c.types,
    }


def _distilbert_entries(c: Config) -> dict:
    return {
        "vocab_size": c.vocab_size,
        "dim": c.width,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "hidden_dim": c.hidden,
        "max_position_embeddings": c.positions,
        "pad_token_id": c.pad,
        "activation": c.activation,
    }


BERT = Family(
    name="bert",
    stem="Bert",
    prefix="bert.",
    config=Config,
    model=Model,
    weights=lambda config: BERT_WEIGHTS,
    fields=_bert_fields,
    unimplemented=_unimplemented,
    entries=_bert_entries,
)
ROBERTA = Family(
    name="roberta",
    stem="Roberta",
    prefix="roberta.",
    config=Config,
    model=Model,
    weights=lambda config: ROBERTA_WEIGHTS,
    fields=_roberta_fields,
    unimplemented=_unimplemented,
    entries=_bert_entries,
    redundant=r"^(roberta\.)?pooler\.",  # the base model has one, its classifier does not
)
DISTILBERT = Family(
    name="distilbert",
    stem="DistilBert",
    prefix="distilbert.",
    config=Config,
    model=Model,
    weights=lambda config: DISTILBERT_WEIGHTS,
    fields=_distilbert_fields,
    unimplemented=_unimplemented,
    entries=_distilbert_entries,
)
