"""The two benchmarks' prompts: templates, filters, and the evaluation set with its hash. The same for every method.

A plain template, for base models, is a chat template without role tokens: one Jinja text, which the tokenizer carries on
into exports. Its end of a turn is the tokenizer's end token, its begin token stands once, at the start.

    assistant   "\\n\\nHuman: …\\n\\nAssistant: …\\n\\nHuman: … \\n\\nAssistant:"   (the last space but one as published)
    reddit      "### Instruction: Generate a one-sentence summary of this post. ### Input: … ### Response:"
    stories     the beginning and a line end: the answer is the story's next paragraph

The published code filters training rows by prompt and response together and evaluation rows by either, depending on the
method; here the prompt alone is measured, for all.

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
CHARACTERS = (100, 1200)  # a post has more than the first and fewer than the second
TOKENS = (8, 512)  # a prompt has at least and at most so many under every tokenizer in play


class Row(NamedTuple):
    """A prompt before it is tokenised.

    Attributes:
      name: what its id is a hash of; equal names are one prompt.
      turns: the conversation that the policy continues.
      text: what a reward model reads as the prompt.
    """

    name: str
    turns: chats.Turns
    text: str


def make_chat(tokenizer, template: str, benchmark: str) -> chats.Chat:
    """The prompt format of a benchmark: the model's own chat template, or the benchmark's plain one.

    Raises:
      ValueError: no such template, or the tokenizer cannot carry it.
    """
    if template == "chat":
        return chats.make(tokenizer)
    if template != "plain":
        raise ValueError(f"config.data.template={template!r} is not one of {', '.join(TEMPLATES)}.")
    if tokenizer.eos_token is None:
        raise ValueError("config.data.template=plain ends an answer by the end token, and this tokenizer has none.")
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = PLAIN[benchmark]
    return chats.make(tokenizer, system=None)


def one_line(text: str) -> str:
    """Each newline becomes a space."""
    return text.replace("\n", " ")


def reddit_prompt(post: str) -> str:
    """The plain prompt of a post, whatever the template: what length limits measure."""
    return f"### Instruction: {INSTRUCTION} ### Input: {post} ### Response:"


def assistant_rows(conversations: Iterable[chats.Turns]) -> list[Row]:
    """Conversations as rows, each once."""
    rows = (Row(chats.name_of(turns), turns, chats.transcript(turns)) for turns in conversations)
    return list({row.name: row for row in rows}.values())


def reddit_turns(post: str, template: str) -> chats.Turns:
    """The conversation that asks for a post's summary; the plain template brings the instruction itself."""
    text = one_line(post)
    return (("user", text if template == "plain" else f"{INSTRUCTION}\n\n{text}"),)


def reddit_rows(posts: Iterable[Post], template: str) -> list[Row]:
    """Posts as rows, each id once, those outside CHARACTERS left out; sorted by id."""
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
      prompt_of: the text that is measured.
      tokenizers: by name, for the counts.
      limits: least and most.

    Returns:
      Rows, and how many each tokenizer would leave out.
    """
    if not rows:
        return [], dict.fromkeys(tokenizers, 0)
    texts, fits = [prompt_of(row) for row in rows], {}
    for name, tokenizer in tokenizers.items():
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        fits[name] = np.array([limits[0] <= len(row) <= limits[1] for row in ids])
    keep = np.logical_and.reduce(list(fits.values())) if fits else np.ones(len(rows), bool)
    return [row for row, kept in zip(rows, keep, strict=True) if kept], {
        name: int((~fit).sum()) for name, fit in fits.items()
    }


def encode(chat: chats.Chat, rows: Sequence[Row], length: int) -> tuple[Prompts, list[Row]]:
    """Rows as Prompts with their texts; those longer than `length` tokens are left out.

    Ids are 31 bits: of two rows whose names have one hash (one pair in 2³¹) the later is left out.

    Returns:
      Prompts, and the rows that they are.
    """
    kept: dict[int, tuple[list[int], Row]] = {}
    for row in rows:
        ids = chats.prompt_ids(chat, row.turns)
        if len(ids) <= length:
            kept.setdefault(chats.hash_of(row.name), (ids, row))
    chosen = [row for _, row in kept.values()]
    texts = [row.text for row in chosen]
    return chats.pad_left([ids for ids, _ in kept.values()], length, chat.pad, list(kept), texts), chosen


def evaluation_set(name: str, ids: Iterable[Any], texts: Iterable[str]) -> dict[str, Any]:
    """What a results file says of the prompts it was measured on.

    Returns:
      name; prompts, their number; sha256 over one JSON line [id, text] a prompt, in their order.
    """
    lines = [json.dumps([str(i), text], ensure_ascii=True) + "\n" for i, text in zip(ids, texts, strict=True)]
    return {"name": name, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(), "prompts": len(lines)}
