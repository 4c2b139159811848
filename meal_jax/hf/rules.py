"""A tokenizer's rules as tokenizer.json has them.

transformers 5 rebuilds the tokenizers of several classes (GPT2Tokenizer, Qwen2Tokenizer, LlamaTokenizer, RobertaTokenizer,
DebertaV2Tokenizer …) from vocabulary and merges alone, with rules of its own. What splits digits, adds no leading space or
normalises characters in the file is then lost without a message, and prompts get other ids than those that the model was
trained on. transformers 4 and the servers follow the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meal_jax.hf.storage import read_json, write_json

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
RULES = ("normalizer", "pre_tokenizer", "decoder")
PARTS = ("model", *RULES, "post_processor")


def restore(tokenizer: Any, directory: Path) -> tuple[str, ...]:
    """Gives a tokenizer of transformers the rules of its directory's tokenizer.json, in place.

    Rules that an entry of tokenizer_config.json asks for, against the file, are left: see `requested`.

    Args:
      tokenizer: as transformers loaded it from `directory`.
      directory: holds tokenizer.json; without that file, or for a tokenizer in Python, nothing is done.

    Returns:
      The parts that were restored, of PARTS.
    """
    if not tokenizer.is_fast or not (directory / FILE).exists():
        return ()
    written, settings = read(directory / FILE), directory / SETTINGS
    kept = requested(read_json(settings) if settings.exists() else {}, written)
    changed = tuple(part for part in differences(tokenizer, written) if part not in kept)
    if "model" in changed:
        written = read(directory / FILE, whole=True)
    for part in changed:
        setattr(tokenizer.backend_tokenizer, part, getattr(written, part))
    return changed


def keep(tokenizer: Any, directory: Path) -> None:
    """Makes transformers read a saved tokenizer with the rules that it has here: after its save_pretrained(directory).

    Where transformers would replace rules of tokenizer.json, tokenizer_config.json gets the class PreTrainedTokenizerFast,
    which reads that file as it is, and what the former class said by itself.
    """
    from transformers import AutoTokenizer

    if tokenizer.is_fast and differences(AutoTokenizer.from_pretrained(str(directory)), read(directory / FILE)):
        entries = options(tokenizer.backend_tokenizer) | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": tokenizer.model_input_names,
            "padding_side": tokenizer.padding_side,
        }
        write_json(directory / SETTINGS, read_json(directory / SETTINGS) | entries)


def read(file: Path, whole: bool = False) -> Any:
    """tokenizer.json as the tokenizers library reads it; BPE's vocabulary and merges, which take seconds, only if `whole`."""
    from tokenizers import Tokenizer

    entries = read_json(file)
    if whole or entries["model"].get("type") != "BPE":
        return Tokenizer.from_file(str(file))
    entries["model"] |= {"vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps(entries | {"added_tokens": []}))


def differences(tokenizer: Any, written: Any) -> tuple[str, ...]:
    """The parts, of PARTS, in which transformers' tokenizer and the tokenizers library's give other ids or texts."""
    return tuple(part for part in PARTS if describe(tokenizer.backend_tokenizer, part) != describe(written, part))


def requested(settings: Mapping[str, Any], written: Any) -> set[str]:
    """The parts, of PARTS, that tokenizer_config.json changes on purpose: transformers has followed it, so they stay.

    The rules before and after the merges by add_prefix_space and BERT's options, where they say something other than the
    file. An entry that is null asks for nothing. Beside a tokenizer.json, transformers 5 ignores add_bos_token and
    add_eos_token: the file's post-processor decides on begin and end tokens.

    Args:
      settings: entries of tokenizer_config.json.
      written: the tokenizers library's tokenizer of tokenizer.json.
    """
    changes = any(settings.get(name) not in (None, value) for name, value in options(written).items())
    return set(RULES) if changes else set()


def describe(backend: Any, part: str) -> Any:
    """What a part of the tokenizers library's tokenizer does to ids and decoded text, for comparisons; None is nothing.

    Left out are the vocabulary, options of offsets, and the options that a byte-level decoder does not use.
    """
    value = getattr(backend, part)
    if part == "model":
        flags = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
        return type(value).__name__, {name: flag or None for name, flag in flags.items() if not callable(flag)}
    if part == "post_processor" and not any(backend.num_special_tokens_to_add(pair) for pair in (False, True)):
        return None
    state = _state(value)
    if part == "decoder" and state and state["type"] == "ByteLevel":
        return state["type"]
    return _without_offsets(state)


def options(written: Any) -> dict[str, Any]:
    """The values that entries of tokenizer_config.json have in the rules of tokenizer.json; of BERT's, if they are there."""
    found = {"add_prefix_space": False}
    for step in (*_steps(_state(written.normalizer)), *_steps(_state(written.pre_tokenizer))):
        if step["type"] == "BertNormalizer":
            found["do_lower_case"] = step["lowercase"]
            found["strip_accents"] = step["strip_accents"]
            found["tokenize_chinese_chars"] = step["handle_chinese_chars"]
        prefix = step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        found["add_prefix_space"] |= prefix or bool(step.get("add_prefix_space"))
    return found


def _steps(rule: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, those of a sequence one by one."""
    if rule is None or rule["type"] != "Sequence":
        return [] if rule is None else [rule]
    return [step for inner in rule.get("normalizers", rule.get("pretokenizers")) for step in _steps(inner)]


def _state(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _without_offsets(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _without_offsets(value) for key, value in state.items() if key != "trim_offsets"}
    return [_without_offsets(value) for value in state] if isinstance(state, list) else state
