"""Inputs of reward models: the published models by objective, and the layouts of prompt and response they were trained on.

A layout is a function (tokenizer, prompt, response, limit) → `Encoded`. Parts are joined as token ids or by the tokenizer's
own pairing, without cutting or stripping text. No end token is appended, since the published code scores without one.

Truncation is as in the published code, `truncation=True, max_length=limit` of transformers. A single sequence loses its end;
in a pair, the longer part loses its end until both fit. `limit` gives the length.

Source of layouts and labels: RiC (arXiv 2402.10207), `ric/multi_reward_models.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from meal_jax.hf.storage import read_json

MAX_TOKENS = 1024  # of any reward model's row


class Encoded(NamedTuple):
    """One row for a reward model: token ids, and segment ids (0, or 1 in the second part of a pair) for models with them."""

    ids: list[int]
    types: list[int]


def plain(tokenizer, prompt: str, response: str, limit: int) -> Encoded:
    """The prompt's ids and then the response's, without any special token (GPT-2)."""
    return _zeros(_encode(tokenizer, prompt, response, limit, add_special_tokens=False).ids)


def response_only(tokenizer, prompt: str, response: str, limit: int) -> Encoded:
    """Only the response, with the tokenizer's special tokens: [CLS] response [SEP]."""
    return _encode(tokenizer, response, None, limit)


def response_bos_post(tokenizer, prompt: str, response: str, limit: int) -> Encoded:
    """The ids of response + " " + begin + " " + post; the prompt is the post."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return _zeros([*ids(f"{response} "), tokenizer.bos_token_id, *ids(f" {prompt}")][:limit])


def response_pair(tokenizer, prompt: str, response: str, limit: int) -> Encoded:
    """(response, post), paired by the tokenizer; the prompt is the post."""
    return _encode(tokenizer, response, prompt, limit)


def prompt_pair(tokenizer, prompt: str, response: str, limit: int) -> Encoded:
    """(prompt, response), paired by the tokenizer: [CLS] prompt [SEP] response [SEP]."""
    return _encode(tokenizer, prompt, response, limit)


# By their names in configurations and in a trained model's config.json.
LAYOUTS = {layout.__name__: layout for layout in (plain, response_only, response_bos_post, response_pair, prompt_pair)}
ENTRY = "meal_jax"  # of a trained model's config.json: {"layout": name, "label": number}


class Preset(NamedTuple):
    """A reward model: its directory or hub id, its layout, and the label whose raw logit is the reward."""

    source: str
    layout: Callable[..., Encoded]
    label: int = 0


# By their names in config.reward.sources. In all of them more is better.
PRESETS = {
    "harmless": Preset("Ray2333/gpt2-large-harmless-reward_model", plain),
    "helpful": Preset("Ray2333/gpt2-large-helpful-reward_model", plain),
    "humor": Preset("mohameddhiab/humor-no-humor", response_only, label=1),  # 0 is "no humor"
    "summary": Preset("Tristan/gpt2_reward_summarization", response_bos_post),
    "faithful": Preset("CogComp/bart-faithful-summary-detector", response_pair, label=1),  # 0 is "hallucinated"
    "deberta": Preset("OpenAssistant/reward-model-deberta-v3-large-v2", prompt_pair),
}


def layout_of(name: str, where: str) -> Callable[..., Encoded]:
    """The layout of that name.

    Raises:
      ValueError: there is no such layout; the message begins with `where`.
    """
    if name not in LAYOUTS:
        raise ValueError(f"{where}: there is no layout {name!r}, only {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def need_begin(tokenizer, layout: Callable[..., Encoded], where: str) -> None:
    """Raises ValueError, beginning with `where`, if the layout needs a begin token and the tokenizer has none."""
    if layout is response_bos_post and tokenizer.bos_token_id is None:
        raise ValueError(f"{where}: the tokenizer lacks the begin token that stands before a post.")


def need_fit(tokenizer, preset: Preset, labels: int, vocabulary: int, name: str, where: str) -> None:
    """Refuses a classifier that cannot score by a preset.

    Args:
      tokenizer: of the classifier.
      preset: its layout and the label that is read.
      labels: number of its logits.
      vocabulary: rows of its embedding.
      name, where: of the preset and of the model, for messages.

    Raises:
      ValueError: there is no such label; the layout needs a begin token and there is none; or the tokenizer has ids for
        plain text, or for what the layout adds, that the embedding has no row for.
    """
    if preset.label >= labels:
        raise ValueError(f"{where} has {labels} labels, and {name!r} reads label {preset.label}.")
    need_begin(tokenizer, preset.layout, where)
    added = set(tokenizer.added_tokens_decoder)
    sample = preset.layout(tokenizer, "a", "b", MAX_TOKENS).ids
    last = max(*sample, *(i for i in tokenizer.get_vocab().values() if i not in added))
    if last >= vocabulary:
        raise ValueError(
            f"{where}: its tokenizer has the token {tokenizer.convert_ids_to_tokens(last)!r} of id {last}, and its embedding "
            f"has {vocabulary} rows, for ids 0 to {vocabulary - 1}. Take the tokenizer that belongs to these weights."
        )


def trained(directory: str | Path) -> Preset:
    """The Preset of a model that `reward_training.model` wrote, from its config.json.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: the entry is missing, or names an unknown layout.
    """
    path = Path(directory).expanduser() / "config.json"
    entry = read_json(path).get(ENTRY)
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, int) or not isinstance(entry.get("layout"), str):
        raise ValueError(
            f"{path} has no entry {ENTRY!r} with a layout and a label, so meal_jax.reward_training.model did not write it. "
            f"Name a published kind ({', '.join(PRESETS)}) in place of `model`, or add to config.json how prompt and response "
            f'are laid out and which logit is the reward: "{ENTRY}": {{"layout": "plain", "label": 0}}.'
        )
    return Preset(str(directory), layout_of(entry["layout"], str(path)), label)


def limit(tokenizer, positions: int = MAX_TOKENS) -> int:
    """Max tokens of a row: the minimum of the tokenizer's limit, the model's positions and MAX_TOKENS."""
    return min(tokenizer.model_max_length, positions, MAX_TOKENS)


def _encode(tokenizer, first: str, second: str | None, limit: int, **options) -> Encoded:
    encoded = tokenizer(first, second, truncation=True, max_length=limit, return_token_type_ids=True, **options)
    return Encoded(list(encoded["input_ids"]), list(encoded["token_type_ids"]))


def _zeros(ids: list[int]) -> Encoded:
    return Encoded(ids, [0] * len(ids))
