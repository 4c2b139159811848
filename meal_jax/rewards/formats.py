"""Inputs of reward models: the published models by objective, and the layouts of prompt and response they were trained on.

A layout is a function (tokenizer, prompt, response, limit) → `Encoded`. Parts are joined as token ids or by the tokenizer's
own pairing, without cutting or stripping text. No end token is appended, since the published code scores without one.

Truncation is as in the published code, `truncation=True, max_length=limit` of transformers. A single sequence loses its end;
in a pair, the longer part loses its end until both fit. `limit` gives the length.

Source of layouts and labels: RiC (arXiv 2402.10207), `ric/multi_reward_models.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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
    """A reward model.

    Attributes:
      source: directory or hub id.
      layout: of prompt and response.
      label: index of the logit that is the reward, raw.
      names: what config.json may call this label, small letters alone; () for a model whose names are not looked at.
      opposites: names of what more of is worse, besides `names` with no, not, non, un or in before them.
    """

    source: str
    layout: Callable[..., Encoded]
    label: int = 0
    names: tuple[str, ...] = ()
    opposites: tuple[str, ...] = ()


# By their names in config.reward.sources. In all of them more is better.
PRESETS = {
    "harmless": Preset(
        "Ray2333/gpt2-large-harmless-reward_model",
        plain,
        names=("harmless", "safe"),
        opposites=("harmful", "toxic", "cost"),
    ),
    "helpful": Preset("Ray2333/gpt2-large-helpful-reward_model", plain, names=("helpful",)),
    "humor": Preset(
        "mohameddhiab/humor-no-humor",
        response_only,
        label=1,  # 0 is "no humor"
        names=("humor", "humour", "humorous", "funny"),
        opposites=("serious",),
    ),
    "summary": Preset(
        "Tristan/gpt2_reward_summarization",
        response_bos_post,
        names=("good", "preferred"),
        opposites=("bad", "rejected"),
    ),
    "faithful": Preset(
        "CogComp/bart-faithful-summary-detector",
        response_pair,
        label=1,  # 0 is "hallucinated"
        names=("faithful", "consistent"),
        opposites=("hallucinated", "hallucination"),
    ),
    "deberta": Preset(
        "OpenAssistant/reward-model-deberta-v3-large-v2",
        prompt_pair,
        names=("good", "preferred"),
        opposites=("bad", "rejected"),
    ),
}
NEGATIONS = ("no", "not", "non", "un", "in")


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


def label_names(directory: str | Path) -> dict[int, str]:
    """The names of a classifier's logits, from `id2label` of config.json; {} if there are none.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: `id2label` is not an object with numbers for keys and texts for values.
    """
    path = Path(directory) / "config.json"
    entries = read_json(path).get("id2label") or {}
    try:
        return {int(i): entries[i].strip() for i in entries}
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"{path}: id2label is {entries!r}, and must give each logit's number a name.") from None


def need_label(preset: Preset, names: Mapping[int, str], name: str, where: str) -> None:
    """Refuses a classifier that calls another logit what the preset reads, or this logit the opposite.

    Args:
      preset: its label, names and opposites.
      names: of the classifier's logits, as `label_names` gives them.
      name, where: of the preset and of the model, for messages.

    Raises:
      ValueError: names the labels.
    """
    short = {i: re.sub(r"[\W_]", "", text.casefold()) for i, text in names.items()}
    opposites = {*preset.opposites, *(n + meaning for n in NEGATIONS for meaning in preset.names)}
    read = short.get(preset.label, "")
    elsewhere = [i for i in sorted(short) if short[i] in preset.names and i != preset.label]
    if read in opposites or (elsewhere and read not in preset.names):
        every_name = ", ".join(f"{i} {names[i]!r}" for i in sorted(names))
        right = f"label {elsewhere[0]} ({names[elsewhere[0]]!r})" if elsewhere else f"a label {preset.names[0]!r}"
        raise ValueError(
            f"{where}: its id2label says {every_name}, and {name!r} reads label {preset.label}, where more must be better. If "
            f"{right} is what you want, add its number to config.json as "
            f'"{ENTRY}": {{"layout": "{preset.layout.__name__}", "label": NUMBER}} and name the directory model@DIRECTORY; if '
            "the names are wrong, correct id2label."
        )


def need_fit(
    tokenizer,
    preset: Preset,
    labels: int,
    vocabulary: int,
    name: str,
    where: str,
    names: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Refuses a classifier that cannot score by a preset.

    Args:
      tokenizer: of the classifier.
      preset: its layout and the label that is read.
      labels: number of its logits.
      vocabulary: rows of its embedding.
      name, where: of the preset and of the model, for messages.
      names: of its logits, as `label_names` gives them.

    Raises:
      ValueError: there is no such label, or its name contradicts the preset; the layout needs a begin token and there is
        none; or the tokenizer has ids for plain text, or for what the layout adds, that the embedding has no row for.
    """
    if preset.label >= labels:
        raise ValueError(f"{where} has {labels} labels, and {name!r} reads label {preset.label}.")
    need_label(preset, names, name, where)
    need_begin(tokenizer, preset.layout, where)
    need_rows(tokenizer, vocabulary, where, preset.layout(tokenizer, "a", "b", MAX_TOKENS).ids)


def need_rows(tokenizer, vocabulary: int, where: str, ids: Sequence[int] = ()) -> None:
    """Refuses a tokenizer with ids for plain text, added words too, or with `ids`, that an embedding has no row for.

    Raises:
      ValueError: names the token of the highest such id.
    """
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    last = max(*ids, *(i for i in tokenizer.get_vocab().values() if i not in special))
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
