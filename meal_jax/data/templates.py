"""The two benchmarks' prompts: templates, filters, and the evaluation set with its hash. All methods share them.

A plain template, for base models, is a chat template without role tokens. It is one Jinja text that the tokenizer takes along
into exports. A turn ends with the tokenizer's end token; the begin token stands once, at the start.

    assistant   "\\n\\nHuman: …\\n\\nAssistant: …\\n\\nHuman: … \\n\\nAssistant:"   (the last space but one as published)
    reddit      "### Instruction: Generate a one-sentence summary of this post. ### Input: … ### Response:"
    stories     the beginning and a line end: the answer is the story's next paragraph

The published code filters training rows by the length of prompt and response together, and evaluation rows by either,
depending on the method. Here only the length of the prompt counts, for all.

Source: RiC (arXiv 2402.10207) and its evaluation, which later papers on these benchmarks share.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meal_jax.data import chat as chats
from meal_jax.data.prompts import Prompts
from meal_jax.data.summarize_from_feedback import Post
from meal_jax.data.template_text import DATE

TEMPLATES = ("chat", "plain")
INSTRUCTION = "Generate a one-sentence summary of this post."
PLAIN = {
    "assistant": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
        "{% elif loop.last %}{{ ' \n\nAssistant: ' + message['content'] + eos_token }}"
        "{% else %}{{ '\n\nAssistant: ' + message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' \n\nAssistant:' }}{% endif %}"
    ),
    "reddit": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction: "
        + INSTRUCTION
        + " ### Input: ' + message['content'] }}"
        "{% else %}{{ ' ### Response: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ### Response:' }}{% endif %}"
    ),
    "stories": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ ' ' + message['content'] }}"
        "{% else %}{{ '\n' + message['content'] }}{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
    ),
}
# Where the published evaluation cuts answers under plain prompts (RiC's get_clean_data): base models run on into a turn.
STOP = dict.fromkeys(("assistant", "reddit"), ("\nHuman:", "\nAssistant:"))
CHARACTERS = (100, 1200)  # bounds of a post's length, both exclusive
TOKENS = (8, 512)  # bounds of a prompt's length under every tokenizer, both inclusive


class Row(NamedTuple):
    """A prompt before it is tokenised.

    Attributes:
      name: the prompt's id is its hash; rows with equal names are one prompt.
      turns: the conversation that the policy continues.
      text: the prompt as a reward model reads it.
    """

    name: str
    turns: chats.Turns
    text: str


def make_chat(
    tokenizer,
    template: str,
    benchmark: str,
    system: str | None = "",
    date: str = DATE,
    options: Sequence[str] = (),
) -> chats.Chat:
    """The prompt format of a benchmark: the model's own chat template, or the benchmark's plain one.

    `system`, `date` and `options` are as in `chats.make`; plain templates have none of them.

    Raises:
      ValueError: no such template, or the tokenizer cannot carry it.
    """
    if template == "chat":
        return chats.make(tokenizer, system, date, options)
    if template != "plain":
        raise ValueError(f"config.data.template={template!r} is not one of {', '.join(TEMPLATES)}.")
    if system:
        raise ValueError("config.data.template=plain has no system message: set config.data.system=''.")
    if options:
        raise ValueError("config.data.template=plain has no variables: set config.data.template_options=().")
    if tokenizer.eos_token is None:
        raise ValueError("config.data.template=plain ends an answer with the end token, and this tokenizer has none.")
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = PLAIN[benchmark]
    return chats.make(tokenizer, system=None)._replace(begins=True)


def chat_of(config, tokenizer) -> chats.Chat:
    """The prompt format of a run, with the tokenizer of its policy. Errors as of `make_chat`."""
    d = config.data
    return make_chat(tokenizer, d.template, config.task, d.system, d.date, d.template_options)


def stop_of(config, benchmark: str) -> tuple[str, ...]:
    """Texts at which an answer is cut before it is scored: `config.data.stop`, or the published evaluation's."""
    if config.data.stop is not None:
        return tuple(config.data.stop)
    return STOP.get(benchmark, ()) if config.data.template == "plain" else ()


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of `stop`, without white space at its ends."""
    text = text.strip()
    for mark in stop:
        text = text.split(mark)[0].strip()
    return text


def one_line(text: str) -> str:
    """Each newline becomes a space."""
    return text.replace("\n", " ")


def reddit_prompt(post: str) -> str:
    """The plain prompt of a post, whose length is limited whatever the template."""
    return f"### Instruction: {INSTRUCTION} ### Input: {post} ### Response:"


def assistant_rows(conversations: Iterable[chats.Turns]) -> list[Row]:
    """Distinct conversations as rows."""
    return list({row.name: row for row in conversation_rows(conversations)}.values())


def conversation_rows(conversations: Iterable[chats.Turns]) -> list[Row]:
    """Conversations as rows, repeated ones too."""
    return [Row(chats.name_of(turns), turns, chats.transcript(turns)) for turns in conversations]


def reddit_turns(post: str, template: str) -> chats.Turns:
    """The conversation that asks for a post's summary; the plain template adds the instruction itself."""
    text = one_line(post)
    return (("user", text if template == "plain" else f"{INSTRUCTION}\n\n{text}"),)


def ask_for_summary(turns: chats.Turns, template: str) -> tuple[chats.Turns, str]:
    """A conversation that a person begins with a post, the instruction left out or not: as the policy was trained to read it,
    and its text as rewards read it."""
    (_, post), *rest = turns
    if post.startswith(INSTRUCTION):
        post = post.removeprefix(INSTRUCTION).lstrip("\n")
    return (*reddit_turns(post, template), *rest), " ".join([one_line(post), *(text for _, text in rest)])


def reddit_rows(posts: Iterable[Post], template: str) -> list[Row]:
    """Posts of the lengths CHARACTERS as rows, one per id, sorted by id."""
    rows = {}
    for post in posts:
        if CHARACTERS[0] < len(post.post) < CHARACTERS[1]:
            rows.setdefault(post.id, Row(post.id, reddit_turns(post.post, template), one_line(post.post)))
    return [rows[name] for name in sorted(rows)]


def within(
    rows: Sequence[Row],
    prompt_of: Callable[[Row], str],
    tokenizers: Mapping[str, Any],
    limits: tuple[int, int] = TOKENS,
) -> tuple[list[Row], dict[str, int]]:
    """The rows whose prompt has 8 … 512 tokens under every tokenizer, special tokens not counted.

    Args:
      rows: of a benchmark.
      prompt_of: gives the text whose tokens are counted.
      tokenizers: by name.
      limits: lower and upper bound.

    Returns:
      Rows, and per tokenizer the number of rows that it alone would leave out.
    """
    if not rows:
        return [], dict.fromkeys(tokenizers, 0)
    texts, fits = [prompt_of(row) for row in rows], {}
    for name, tokenizer in tokenizers.items():
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        fits[name] = np.array([limits[0] <= len(row) <= limits[1] for row in ids])
    keep = np.logical_and.reduce(list(fits.values())) if fits else np.ones(len(rows), bool)
    return [row for row, inside in zip(rows, keep, strict=True) if inside], {
        name: int((~fit).sum()) for name, fit in fits.items()
    }


def encode_rows(chat: chats.Chat, rows: Sequence[Row], length: int) -> tuple[Prompts, list[Row]]:
    """Rows as Prompts with their texts; rows longer than `length` tokens are left out.

    Ids have 31 bits: if two names have the same hash (one pair in 2³¹), the later row is left out.

    Returns:
      Prompts, and their rows.
    """
    by_id: dict[int, tuple[list[int], Row]] = {}
    for row in rows:
        ids = chats.prompt_ids(chat, row.turns)
        if len(ids) <= length:
            by_id.setdefault(chats.hash_of(row.name), (ids, row))
    chosen = [row for _, row in by_id.values()]
    texts = [row.text for row in chosen]
    return chats.pad_left([ids for ids, _ in by_id.values()], length, chat.pad, list(by_id), texts), chosen


def evaluation_set(
    name: str, ids: Iterable[Any], texts: Iterable[str], tokens: Iterable[Sequence[int]] | None = None
) -> dict[str, Any]:
    """What a results file says about its evaluation prompts.

    Args:
      name: of the set.
      ids, texts: of the prompts.
      tokens: token ids of each prompt without padding, where a tokenizer and a template made them.

    Returns:
      name; prompts, their number; sha256 over one JSON line per prompt, in their order: [id, text], or [id, text, tokens].
    """
    rows = zip(ids, texts, strict=True) if tokens is None else zip(ids, texts, tokens, strict=True)
    lines = [
        json.dumps([str(i), text, *(np.asarray(t).tolist() for t in rest)], ensure_ascii=True) + "\n"
        for i, text, *rest in rows
    ]
    return {"name": name, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(), "prompts": len(lines)}
