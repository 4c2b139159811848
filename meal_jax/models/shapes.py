"""Sizes of published decoders, for measuring their cost where their weights are not at hand.

Each is what the model's own config.json says of its shapes; weights of these shapes are drawn at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meal_jax.models import families, hf
from meal_jax.models.transformer import TransformerConfig

RANDOM = "random:"  # before a name below, a directory or a hub id: its shapes, random weights


def _llama(vocabulary, width, hidden, layers, heads, kv_heads, *, theta=10_000.0, eps=1e-5, tied=False, context=4096):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": width // heads, "hidden_act": "silu", "rms_norm_eps": eps,
        "rope_theta": theta, "tie_word_embeddings": tied, "max_position_embeddings": context, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": _llama(49152, 576, 1536, 30, 9, 3, theta=100_000.0, tied=True, context=8192),
    "SmolLM2-360M": _llama(49152, 960, 2560, 32, 15, 5, theta=100_000.0, tied=True, context=8192),
    "SmolLM2-1.7B": _llama(49152, 2048, 8192, 24, 32, 32, theta=130_000.0, tied=True, context=8192),
    "Llama-2-7b": _llama(32000, 4096, 11008, 32, 32, 32),
    "Llama-2-13b": _llama(32000, 5120, 13824, 40, 40, 40),
    "Llama-3-8B": _llama(128256, 4096, 14336, 32, 32, 8, theta=500_000.0, context=8192),
}


def entries(source: str) -> Mapping[str, Any]:
    """config.json's entries for a name of SHAPES (a path or hub id that ends in one will do), a directory or a hub id.

    Raises:
      FileNotFoundError: it is neither known here nor anywhere else; lists the names.
    """
    name = Path(source).name.lower()
    for known in sorted(SHAPES, key=len, reverse=True):  # "SmolLM2-135M-Instruct" is "SmolLM2-135M"
        if name.startswith(known.lower()):
            return SHAPES[known]
    try:
        return hf.read_json(hf.resolve(source) / "config.json")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{RANDOM}{source}: no shapes of that name are known ({', '.join(SHAPES)}), and {error}"
        ) from None


def load_config(source: str, **overrides) -> TransformerConfig:
    """The decoder of those entries; `overrides` as in `hf.load_config`."""
    return dataclasses.replace(families.parse(entries(source), source), **overrides)
