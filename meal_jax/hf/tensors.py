"""The tensors that a decoder's configuration asks for, and those that a file has: names, shapes and types from headers alone.

Letters: L layers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from meal_jax.hf.storage import FLOATS, Tensor, few
from meal_jax.hf.weight_names import FUSED, Weight, weights
from meal_jax.models.transformer import Transformer, TransformerConfig

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@functools.cache
def param_shapes(config: TransformerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path "a/b/c" → shape and type of every base parameter of the decoder, without adapters."""
    c = dataclasses.replace(config, lora=None)
    tokens = jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)

    def init(tokens):
        def call(module, tokens):
            return module(module.embed(tokens), tokens, jnp.ones((1, 1, 1, 1), bool))

        return Transformer(c).init(jax.random.key(0), tokens, method=call)["params"]

    return traverse_util.flatten_dict(jax.eval_shape(init, tokens), sep="/")


def rename(tensors: Mapping[str, Tensor], config: TransformerConfig) -> Mapping[str, Tensor]:
    """Tensors under the names of the text-only model with a head.

    Four writers differ: Gemma 3 with vision has a text part; transformers' headless classes leave out the prefix "model.";
    of two tied tensors some keep the output alone; and Phi 3 fuses matrices that read the same input.
    """
    if config.family == "gemma3_text" and any("language_model." in name for name in tensors):
        # transformers 4 wrote language_model.model.…, 5 writes model.language_model.…
        text = re.compile(r"^(model\.)?language_model\.(model\.)?")
        tensors = {
            name
            if name.startswith("lm_head.")
            else re.sub("^model[.](?=lm_head)", "", text.sub("model.", name)): tensor
            for name, tensor in tensors.items()
            if "vision_tower." not in name and "multi_modal_projector." not in name
        }
    if not any(name.startswith("model.") for name in tensors):
        tensors = {name if name == HEAD else f"model.{name}": tensor for name, tensor in tensors.items()}
    tensors = _unfuse(tensors, config)
    if config.tied and HEAD in tensors and EMBEDDING not in tensors:
        tensors = {EMBEDDING if name == HEAD else name: tensor for name, tensor in tensors.items()}
    return tensors


def _unfuse(tensors: Mapping[str, Tensor], config: TransformerConfig) -> Mapping[str, Tensor]:
    """Fused matrices as the parts that `FUSED` names, each read on indexing; one of another height stays as it is."""
    c = config
    heights = {
        "self_attn.qkv_proj": [count * c.head_dim for count in (c.heads, c.kv_heads, c.kv_heads)],
        "mlp.gate_up_proj": [c.hidden] * 2,
    }
    out = {}
    for name, tensor in tensors.items():
        fused = next((stem for stem in FUSED if name.endswith(f".{stem}.weight")), None)
        if fused is None or tensor.get_shape()[0] != sum(heights[fused]):
            out[name] = tensor
            continue
        first = 0
        for part, height in zip(FUSED[fused], heights[fused], strict=True):
            shape, read = (height, *tensor.get_shape()[1:]), functools.partial(_rows, tensor, first, height)
            out[name.replace(fused, part)] = Tensor(shape, tensor.get_dtype(), read)
            first += height
    return out


def _rows(tensor: Tensor, first: int, height: int, index: Any) -> np.ndarray:
    """`index` of the part of a tensor that has `height` rows from `first` on."""
    rows, *rest = index if isinstance(index, tuple) else (index,)
    if rows is Ellipsis:
        rows = slice(None)
    start, stop, _ = rows.indices(height)
    return tensor[(slice(first + start, first + stop), *rest)]


def check_tensors(directory: Path, tensors: Mapping[str, Tensor], config: TransformerConfig) -> None:
    """Raises ValueError naming every tensor that is missing, misshapen, of a wrong type or left over."""
    shapes = param_shapes(config)
    expected = {}
    for weight in weights(config):
        shape = torch_shape(weight, shapes[weight.path].shape)
        expected |= dict.fromkeys(weight.names(config.layers), shape)
    stored = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    if config.tied and HEAD in stored:  # need not be there
        expected[HEAD] = (config.vocab_size, config.width)
    problems = {
        "missing": sorted(expected.keys() - stored.keys()),
        "misshapen": [
            f"{name} {list(stored[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & stored.keys())
            if stored[name] != expected[name]
        ],
        "not floating point": sorted(
            f"{name} ({tensor.get_dtype()})"
            for name, tensor in tensors.items()
            if name in expected and tensor.get_dtype() not in FLOATS
        ),
        "left over": sorted(name for name in stored.keys() - expected.keys() if not _is_redundant(name, config)),
    }
    lines = [f"  {what}: {few(names)}" for what, names in problems.items() if names]
    if lines:
        raise ValueError(f"The tensors in {directory} are not those of its config.json:\n" + "\n".join(lines))


def _is_redundant(name: str, config: TransformerConfig) -> bool:
    """Whether a tensor follows from others, as some writers add: the tied output, the rotary frequencies."""
    return (config.tied and name == HEAD) or name.endswith("rotary_emb.inv_freq")


def torch_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor behind a parameter of a shape: without L, and reversed if it is transposed."""
    shape = shape[1:] if "{}" in weight.name else shape
    return shape[::-1] if weight.transposed else shape
