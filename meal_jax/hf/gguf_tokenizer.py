"""The tokenizer in a GGUF file's metadata, as one of the tokenizers library.

A GGUF file holds a vocabulary and the names of rules; this module has the rules. There are two kinds: byte-level BPE ("gpt2",
with a named pre-tokenizer), and sentencepiece's BPE ("llama"), whose merges follow from its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # GGUF's types of tokens
SPACE = "▁"  # sentencepiece's symbol for a space

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ByteLevel(NamedTuple):
    """Rules of a byte-level tokenizer: what splits a text before the merges, and the normalisation before that.

    Attributes:
      split: steps of the pre-tokenizer.
      normalizer: or None.
      whole_words: a piece that is a token stays one, whatever the merges are.
      begins: adds a begin token if the file does not say whether to.
    """

    split: tuple
    normalizer: Any = None
    whole_words: bool = False
    begins: bool = False


def _split(digits: str) -> tuple:
    pattern = tokenizers.Regex(_WORDS.format(digits=digits))
    return (
        pre_tokenizers.Split(pattern, behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


# By GGUF's name: SmolLM 1 and 2; Qwen 2, 2.5 and 3; Llama 3.
BYTE_LEVEL = {
    "smollm": ByteLevel(
        (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        )
    ),
    "qwen2": ByteLevel(_split(r"\p{N}"), normalizers.NFC()),
    "llama-bpe": ByteLevel(_split(r"\p{N}{1,3}"), whole_words=True, begins=True),
}


def read_tokenizer(meta: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer, and the entries of its tokenizer_config.json.

    Raises:
      ValueError: its kind is not implemented, named in the message; or the file is incomplete.
    """
    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    tokens = list(get_entry(meta, "tokenizer.ggml.tokens"))
    types = get_entry(meta, "tokenizer.ggml.token_type")
    if len(set(tokens)) != len(tokens):
        raise ValueError("The GGUF file's vocabulary holds a token twice: an id would be lost.")
    if model == "gpt2":
        if pre not in BYTE_LEVEL:
            raise ValueError(f"The GGUF pre-tokenizer {pre!r} is not implemented ({', '.join(BYTE_LEVEL)} are).")
        tokenizer, begins = _byte_level(meta, tokens, BYTE_LEVEL[pre]), BYTE_LEVEL[pre].begins
    elif model == "llama":
        tokenizer, begins = _sentencepiece(meta, tokens, types), True
    else:
        raise ValueError(f"The GGUF tokenizer model {model!r} is not implemented (gpt2 and llama are).")

    def of_type(kind: int) -> list[tokenizers.AddedToken]:
        return [
            tokenizers.AddedToken(token, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ == kind and token.strip()  # merges produce runs of spaces
        ]

    # What fills the rows behind a vocabulary, "[PAD151700]" and so on, is special too: no answer is to hold it.
    tokenizer.add_special_tokens(of_type(CONTROL) + of_type(UNUSED))
    tokenizer.add_tokens(of_type(USER_DEFINED))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json unchanged
        "clean_up_tokenization_spaces": False,
    }
    for name, gguf_name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{gguf_name}_token_id"
        if key in meta:
            settings[f"{name}_token"] = tokens[meta[key]]
    if "tokenizer.chat_template" in meta:
        settings["chat_template"] = meta["tokenizer.chat_template"]
    begins = meta.get("tokenizer.ggml.add_bos_token", begins and "bos_token" in settings)
    add_ends(tokenizer, settings, begins, meta.get("tokenizer.ggml.add_eos_token", False))
    return tokenizer, settings


def get_entry(meta: Mapping[str, Any], key: str, *default):
    """An entry, or its default; ValueError if there is neither."""
    if key in meta:
        return meta[key]
    if default:
        return default[0]
    raise ValueError(f"The GGUF file has no entry {key}; it is incomplete.")


def _byte_level(meta: Mapping[str, Any], tokens: list[str], rules: ByteLevel) -> tokenizers.Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in get_entry(meta, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.whole_words))
    if rules.normalizer is not None:
        tokenizer.normalizer = rules.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(rules.split))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(meta: Mapping[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    """BPE over characters, with bytes for unknown ones; a space is part of the word after it."""
    gemma = meta.get("general.architecture", "").startswith("gemma")
    # Gemma's tokens of spaces are stored as spaces. The order of its merges is that of the ids, not of the scores.
    spelled = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    order = range(len(tokens)) if gemma else [-score for score in get_entry(meta, "tokenizer.ggml.scores")]
    unknown = [token for token, type_ in zip(tokens, types, strict=True) if type_ == UNKNOWN]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(spelled)},
            merges=merges_of(spelled, types, order),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    else:
        prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = prefixed("first" if prefix else "never")
        steps += [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def prefixed(scheme: str) -> pre_tokenizers.PreTokenizer:
    """Puts sentencepiece's space before a text whose spaces are SPACE already, also if it begins with one.

    One Metaspace alone would leave out the space where the text begins with SPACE.

    Args:
      scheme: "first" for the start of the text, "always" for each part between added tokens too, "never".
    """
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(" ", scheme, split=False), pre_tokenizers.Metaspace(SPACE, "never", split=False)]
    )


def merges_of(tokens: list[str], types: list[int], order) -> list[tuple[str, str]]:
    """The merges of a sentencepiece vocabulary: every way to cut a token into two tokens, tokens of low order first."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, type_, rank in zip(tokens, types, order, strict=True):
        if type_ in (NORMAL, USER_DEFINED):
            cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
            known = [(vocabulary[a], vocabulary[b], a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
            merges += [(rank, *cut) for cut in sorted(known)]
    return [(a, b) for *_, a, b in sorted(merges, key=lambda merge: merge[0])]


def add_ends(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, str], begins: bool, ends: bool) -> None:
    """Makes the tokenizer put begin and end tokens, those that `settings` name, around a text or not."""
    before, after = ([settings[f"{end}_token"]] * wanted for end, wanted in (("bos", begins), ("eos", ends)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before + after)],
    )
