"""llama2.c's checkpoints (format v0) and tokenizers, as Hugging Face calls their parts.

A checkpoint is seven integers (width, hidden width, layers, heads, key-value heads, vocabulary, context; a negative vocabulary
says that the output is not tied to the embedding) and then every parameter in float32. llama2.c rotates neighbouring
pairs of a head's channels and Hugging Face channel c with c + C/2, so the rows of q and k change places.

A story in llama2.c's training data begins with <s> and nothing ends it but the next story's <s>; the model never saw </s>. So
<s> is the begin token and the end token here.

Letters: L layers, D width, H heads, G key-value heads, C head width, V vocabulary.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from meal_jax.hf import gguf_tokenizer
from meal_jax.hf.families import entries
from meal_jax.models.transformer import TransformerConfig

HEADER = ("width", "hidden", "layers", "heads", "kv_heads", "vocabulary", "context")
BYTE = 6  # GGUF's type of a token that stands for one byte
BEGIN = "<s>"


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The entries of config.json, and float32 tensors by Hugging Face name.

    Raises:
      ValueError: the file's length is not that of the model that its header describes.
    """
    data = path.read_bytes()
    size = 4 * len(HEADER)
    if len(data) < size:
        raise ValueError(f"{path} is too short for a llama2.c checkpoint; fetch it again.")
    sizes = dict(zip(HEADER, struct.unpack_from(f"<{len(HEADER)}i", data), strict=True))
    layers, d, hidden, vocabulary = (sizes[name] for name in ("layers", "width", "hidden", "vocabulary"))
    tied, vocabulary = vocabulary > 0, abs(vocabulary)
    if min(sizes["heads"], sizes["kv_heads"], d, layers, hidden, vocabulary) <= 0 or d % sizes["heads"]:
        raise ValueError(f"{path} is not a llama2.c checkpoint of format v0: its header reads {sizes}.")
    c = d // sizes["heads"]
    shapes = {  # in the file's order
        "model.embed_tokens.weight": (vocabulary, d),
        "input_layernorm": (layers, d),
        "self_attn.q_proj": (layers, sizes["heads"] * c, d),
        "self_attn.k_proj": (layers, sizes["kv_heads"] * c, d),
        "self_attn.v_proj": (layers, sizes["kv_heads"] * c, d),
        "self_attn.o_proj": (layers, d, d),
        "post_attention_layernorm": (layers, d),
        "mlp.gate_proj": (layers, hidden, d),
        "mlp.down_proj": (layers, d, hidden),
        "mlp.up_proj": (layers, hidden, d),
        "model.norm.weight": (d,),
        "cosines": (sizes["context"], c // 2),  # what rotary positions multiply by; they follow from the sizes
        "sines": (sizes["context"], c // 2),
    } | ({} if tied else {"lm_head.weight": (vocabulary, d)})
    expected = size + 4 * sum(math.prod(shape) for shape in shapes.values())
    if len(data) != expected:
        raise ValueError(f"{path} has {len(data)} bytes, and a model of its header, {sizes}, has {expected}.")
    arrays, offset = {}, size
    for name, shape in shapes.items():
        arrays[name] = np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape)
        offset += arrays[name].nbytes
    tensors = {}
    for name, array in arrays.items():
        if name.endswith(("q_proj", "k_proj")):
            array = halves(array, c)
        if name not in ("cosines", "sines"):
            is_global = name.endswith(".weight")
            tensors |= (
                {name: array} if is_global else {f"model.layers.{i}.{name}.weight": a for i, a in enumerate(array)}
            )
    config = TransformerConfig(
        vocab_size=vocabulary, width=d, layers=layers, heads=sizes["heads"], kv_heads=sizes["kv_heads"], head_dim=c,
        hidden=hidden, norm_eps=1e-5, rope_base=10_000.0, tied=tied,
    )  # fmt: skip
    return entries(config) | {"max_position_embeddings": sizes["context"]}, tensors


def halves(weight: np.ndarray, c: int) -> np.ndarray:
    """Rows [..., heads * C, D] whose channels rotate in neighbouring pairs, as rows whose channels c and c + C/2 do."""
    *lead, rows, d = weight.shape
    pairs = weight.reshape(*lead, rows // c, c // 2, 2, d)
    return np.ascontiguousarray(np.swapaxes(pairs, -3, -2)).reshape(weight.shape)


def read_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, which begins a text with <s>, and the entries of its tokenizer_config.json.

    Raises:
      ValueError: the file is cut short.
    """
    data, offset, tokens, scores = path.read_bytes(), 4, [], []  # the first integer is the longest token's length
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset) if offset + 8 <= len(data) else (0.0, -1)
        piece, offset = data[offset + 8 : offset + 8 + length], offset + 8 + length
        if length < 0 or len(piece) != length:
            raise ValueError(f"{path} is not a llama2.c tokenizer, or is cut short; fetch it again.")
        tokens.append(piece.decode())
        scores.append(score)
    special = {0: "<unk>", 1: BEGIN, 2: "</s>"}
    types = [gguf_tokenizer.UNKNOWN, gguf_tokenizer.CONTROL, gguf_tokenizer.CONTROL]
    types += [BYTE if i < 256 + len(special) else gguf_tokenizer.NORMAL for i in range(len(special), len(tokens))]
    tokenizer, settings = gguf_tokenizer.read_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [
                special.get(i, piece.replace(" ", gguf_tokenizer.SPACE)) for i, piece in enumerate(tokens)
            ],
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 1,
        }
    )
    # As the shipped tokenizer.json has it: a text that begins with a space, as `stories` prompts do, gets no second one.
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(gguf_tokenizer.SPACE, "first", split=False)
    return tokenizer, settings
