"""A sentencepiece file (tokenizer.model) as a tokenizer of the tokenizers library; the sentencepiece package is not needed.

The file is a protocol buffer (sentencepiece_model.proto of the published source). GGUF numbers the types of pieces in the
same way, so `gguf_tokenizer` makes the tokenizer.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from meal_jax.hf import gguf_tokenizer
from meal_jax.hf.storage import read_json

# Numbers of fields: of ModelProto, of SentencePiece, of TrainerSpec, of NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, SUFFIX, UNK, BOS, EOS, PAD = 3, 24, 40, 41, 42, 43
CHARACTERS, PREFIX, EXTRA, ESCAPE = 2, 3, 4, 5
BPE = 2
PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # with which transformers reads such files
READER = "sentencepiece.sentencepiece_model_pb2"
# Classes of a tokenizer_config.json for which `legacy` is on where it says nothing; LlamaTokenizer's is off.
WITHOUT_CLASS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
# Types of models, of config.json, for which transformers takes one of these even if tokenizer_config.json names Llama's
WITHOUT_LLAMAS = ("granite", "ministral", "mistral", "olmo2", "phi3")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_model(
    path: Path, prefix: bool | None = None, legacy: bool = False
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, which puts its begin token before a text, and the entries of its tokenizer_config.json.

    Args:
      path: of the file.
      prefix: whether a text gets a leading space; None for what the file says.
      legacy: each part between added tokens gets it too, as transformers' `legacy=True` has it.

    Raises:
      ValueError: not a sentencepiece file, a model that is not BPE, or one that writes spaces otherwise than Llama 2's.
    """
    tokens, scores, types, trainer, normalizer = [], [], [], {}, {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == PIECES:
                piece = dict(_fields(value))
                tokens.append(piece[PIECE].decode())
                scores.append(piece.get(SCORE, 0.0))
                types.append(piece.get(TYPE, gguf_tokenizer.NORMAL))
            elif number == TRAINER:
                trainer = dict(_fields(value))
            elif number == NORMALIZER:
                normalizer = dict(_fields(value))
    except (IndexError, KeyError, AttributeError, TypeError, struct.error, ValueError) as error:
        raise ValueError(f"{path} is not a sentencepiece model, or is cut short ({error}); fetch it again.") from error
    if trainer.get(MODEL_TYPE) != BPE:
        raise ValueError(f"{path} is a sentencepiece model other than BPE, which is not implemented.")
    if trainer.get(SUFFIX) or not normalizer.get(ESCAPE, 1):
        raise ValueError(
            f"{path} is a sentencepiece model that writes spaces after words, or as they are; neither is implemented."
        )
    prefix = bool(normalizer.get(PREFIX, 1)) if prefix is None else prefix
    ids = {"unknown": (UNK, 0), "bos": (BOS, 1), "eos": (EOS, 2), "padding": (PAD, -1)}  # field numbers and defaults
    meta = {f"tokenizer.ggml.{name}_token_id": trainer.get(number, default) for name, (number, default) in ids.items()}
    tokenizer, settings = gguf_tokenizer.read_tokenizer(
        {key: i for key, i in meta.items() if 0 <= i < len(tokens)}
        | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.add_space_prefix": prefix,
        }
    )
    steps = [normalizers.Precompiled(normalizer[CHARACTERS])] if normalizer.get(CHARACTERS) else []
    if not normalizer.get(EXTRA):
        steps.append(normalizers.Replace(" ", gguf_tokenizer.SPACE))
    else:  # files have this entry, so its absence asks for nothing
        steps += [
            normalizers.Replace(tokenizers.Regex(pattern), text)
            # A space at the start is the one that a text gets, so it must still be a space.
            for pattern, text in (("^ +", " " if prefix else ""), (" +$", ""), (" {2,}", " "))
        ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if prefix and legacy:
        tokenizer.pre_tokenizer = gguf_tokenizer.prefixed("always")
    return tokenizer, settings


def read_directory(directory: Path, file: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """`read_model` of a directory's file, with the tokens and settings of the JSON files beside it.

    added_tokens.json and tokenizer_config.json add tokens, each with an id; special_tokens_map.json and
    tokenizer_config.json name those with a role, the latter first. Its `add_bos_token` and `add_eos_token` say which of them
    surround a text: where it does not, only a begin token does. `legacy` is as transformers 5.24 takes it: by default off in
    LlamaTokenizer, and on where no class is named or the model's type, of config.json, has none of its own.

    Raises:
      ValueError: as `read_model`; or an added token cannot have the id that is written.
    """
    names = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json", "config.json")
    roles, configured, added, model = (read_json(directory / n) if (directory / n).exists() else {} for n in names)
    prefixed = configured.get("tokenizer_class") in WITHOUT_CLASS or model.get("model_type") in WITHOUT_LLAMAS
    legacy = configured.get("legacy", prefixed)
    tokenizer, settings = read_model(directory / file, configured.get("add_prefix_space"), bool(legacy))
    named = {k: _text(v) for part in (roles, configured) for k, v in part.items() if k in NAMED and v}
    lists = [
        part.get(f"{kind}_special_tokens") or () for part in (roles, configured) for kind in ("additional", "extra")
    ]
    extra = [_text(v) for tokens in lists for v in (tokens.values() if isinstance(tokens, dict) else tokens)]
    special = {*named.values(), *extra}
    by_id = {i: {"content": text, "special": text in special, "normalized": False} for text, i in added.items()}
    by_id |= {int(i): token for i, token in (configured.get("added_tokens_decoder") or {}).items()}
    for i, token in sorted(by_id.items()):
        options = {k: token.get(k, False) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        tokenizer.add_tokens([tokenizers.AddedToken(token["content"], **options)])
        if tokenizer.token_to_id(token["content"]) != i:
            raise ValueError(
                f"{directory} adds the token {token['content']!r} as id {i}, and behind the ids of {file} it comes out as "
                f"{tokenizer.token_to_id(token['content'])}: added_tokens.json or tokenizer_config.json lacks tokens, or "
                "belongs to another model. Take a directory with tokenizer.json."
            )
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in extra])
    known = settings | {k: text for k, text in named.items() if tokenizer.token_to_id(text) is not None}
    begins = configured.get("add_bos_token") is not False and "bos_token" in known
    gguf_tokenizer.add_ends(tokenizer, known, begins, bool(configured.get("add_eos_token")))
    written = directory / "chat_template.jinja"  # comes before the entry, as in transformers
    template = written.read_text(encoding="utf-8") if written.exists() else configured.get("chat_template")
    return tokenizer, settings | named | ({"chat_template": template} if template else {})


def what_lacks(directory: Path) -> str:
    """Why transformers cannot read a sentencepiece file that only it can read; "" if the reason is another.

    Without the packages, or with a protobuf too old for them, it takes the file for one of tiktoken, and says that this
    package is missing.
    """
    files = sorted(path.name for path in directory.glob("*.model") if path.name != "tokenizer.model")
    if not files or (directory / "tokenizer.json").exists():
        return ""
    absent = [name for name, module in PACKAGES.items() if not _is_installed(module)]
    if absent:
        return (
            f"transformers reads the sentencepiece file {files[0]} with packages that are missing: pip install "
            f"{' '.join(absent)}. Or take a directory with tokenizer.json."
        )
    try:
        importlib.import_module(READER)
    except Exception as error:  # of any type: sentencepiece 0.2.3 refuses protobuf 6 by one of protobuf's
        return (
            f"transformers reads the sentencepiece file {files[0]} by {READER}, which cannot be imported ({error}): "
            "pip install --upgrade sentencepiece protobuf. Or take a directory with tokenizer.json."
        )
    return ""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _text(token: Any) -> str:
    """A token of these files: its text, or a table with it."""
    return token["content"] if isinstance(token, dict) else token


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
