"""A sentencepiece file (tokenizer.model) as a tokenizer of the tokenizers library; the sentencepiece package is not needed.

The file is a protocol buffer (sentencepiece_model.proto of the published source). GGUF numbers the types of pieces in the
same way, so `gguf_tokenizer` makes the tokenizer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from meal_jax.hf import gguf_tokenizer

# Numbers of fields: of ModelProto, of SentencePiece, of TrainerSpec.
PIECES, TRAINER = 1, 2
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, UNK, BOS, EOS, PAD = 3, 40, 41, 42, 43
BPE = 2


def read_model(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, which puts its begin token before a text, and the entries of its tokenizer_config.json.

    Raises:
      ValueError: not a sentencepiece file, or a model that is not BPE.
    """
    tokens, scores, types, trainer = [], [], [], {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == PIECES:
                piece = dict(_fields(value))
                tokens.append(piece[PIECE].decode())
                scores.append(piece.get(SCORE, 0.0))
                types.append(piece.get(TYPE, gguf_tokenizer.NORMAL))
            elif number == TRAINER:
                trainer = dict(_fields(value))
    except (IndexError, KeyError, AttributeError, TypeError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a sentencepiece model, or is cut short ({error}); fetch it again.") from error
    if trainer.get(MODEL_TYPE) != BPE:
        raise ValueError(f"{path} is a sentencepiece model other than BPE, which is not implemented.")
    ids = {"unknown": (UNK, 0), "bos": (BOS, 1), "eos": (EOS, 2), "padding": (PAD, -1)}  # field numbers and defaults
    meta = {f"tokenizer.ggml.{name}_token_id": trainer.get(number, default) for name, (number, default) in ids.items()}
    return gguf_tokenizer.read_tokenizer(
        {key: i for key, i in meta.items() if 0 <= i < len(tokens)}
        | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
        }
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: integers, floats, or bytes (texts and messages within)."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        kind = key & 7
        if kind == 0:
            value, offset = _varint(data, offset)
        elif kind == 2:
            length, offset = _varint(data, offset)
            value, offset = data[offset : offset + length], offset + length
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, offset = struct.unpack_from("<d" if kind == 1 else "<f", data, offset)[0], offset + size
        else:
            raise ValueError(f"field of kind {kind}")
        if offset > len(data):
            raise ValueError("a field ends after the file")
        yield key >> 3, value


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """An integer of seven bits per byte, and the index after it; negative ones are stored modulo 2⁶⁴."""
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value - (1 << 64) if value >= 1 << 63 else value, offset
