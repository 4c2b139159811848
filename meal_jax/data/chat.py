"""Conversations to token ids by the tokenizer's own chat template, and the split that keeps evaluation honest.

Without a system message, many templates (SmolLM2's among them) insert a system text of their own, some twenty tokens per
prompt. There `system=""` passes an empty system message, which takes that text's place. Where a template inserts nothing, an
empty message would only change the prompt (Gemma 3) or is refused (Gemma 2), so none is passed. `system=None` never
passes one. A template that writes today's date gets a fixed one, so prompts do not differ from day to day. Its variables, such
as Qwen 3's `enable_thinking`, are set in its own first line, so that every reader of it has them, an export's too.
The generation prompt, which opens the answer, is separate, as the tail: the policy reads its preference between prompt and
tail. Reward training and policy must use one format; `describe` names it.

A response is the tokens of its text followed by the end-of-turn token, the first token that the template puts after an
assistant's text.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from meal_jax.data.prompts import Prompts
from meal_jax.data.template_text import DATE, TEXTS, dated, with_one_template, with_options

Turns = Sequence[tuple[str, str]]
MARKS = (("user", "mark-one"), ("assistant", "mark-two"), ("user", "mark-three"))  # a template has to write each text
SPLITS = {"reward": 0.7, "policy": 0.15, "eval": 0.15}  # shares of first human turns; docs and heads files name them


class Chat(NamedTuple):
    """How conversations become tokens.

    Attributes:
      tokenizer: of Hugging Face's transformers, with a chat template.
      end: id of the end-of-turn token.
      pad: id that fills prompts on the left.
      system: text of the system message, or None for no system message.
      lead: text that the template puts between the generation prompt and an answer; " " in plain transcripts.
      date: what the template's `strftime_now` says, YYYY-MM-DD.
      begins: the begin token is put before a prompt's ids, not into its text. After a begin token in the text, tokenizers
        with a dummy prefix (Llama 2's) spell the first word without its leading space; the published code feeds it with one.
      opened: text that an answer follows, as the template writes it after a short turn: an answer's first token depends on it.
      closing: what the template writes at a conversation's end and a prompt does not have: Vicuna's space, which the tail
        has instead, or Phi 3's end token.
    """

    tokenizer: object
    end: int
    pad: int
    system: str | None = ""
    lead: str = ""
    date: str = DATE
    begins: bool = False
    opened: str = ""
    closing: str = ""


def make(tokenizer, system: str | None = "", date: str = DATE, options: Sequence[str] = ()) -> Chat:
    """Decides on the system message and finds the template's end-of-turn token.

    Args:
      tokenizer: with a chat template; of several named ones, the default one is used. One that takes lists of parts alone
        gets a line before it that makes them of texts.
      system: text of the system message; "" for an empty one where the template would insert its own text; None for none.
      date: that the template is given for today's, YYYY-MM-DD.
      options: variables of the template, as `with_options` takes them.

    Raises:
      ValueError: no chat template, or one that lacks an option's variable, that refuses the system message, that leaves out
        the text of a turn, or that ends a turn with plain text.
    """
    tokenizer = with_one_template(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("The tokenizer has no chat template: take an instruction-tuned model.")
    tokenizer = with_options(tokenizer, options)
    chat = Chat(tokenizer, -1, tokenizer.pad_token_id, system or None, date=date)
    text = "meal"
    turns = (("user", "x"), ("assistant", text))
    if not _writes_every_turn(chat):
        in_parts = copy.copy(tokenizer)
        in_parts.chat_template = TEXTS + tokenizer.chat_template
        if _writes_every_turn(chat._replace(tokenizer=in_parts)):
            tokenizer, chat = in_parts, chat._replace(tokenizer=in_parts)
    try:
        closed, lost = render(chat, turns, False), _lost(chat)
    except Exception as error:  # templates raise whatever jinja2 and their authors like
        given = f"the system message {system!r}" if system else "a user's turn and an answer"
        advice = " A template without a system role needs config.data.system=''." if system else ""
        raise ValueError(f"The tokenizer's chat template fails on {given}: {error}.{advice}") from error
    if lost:  # different conversations would silently become equal prompts
        raise ValueError(
            "The tokenizer's chat template leaves out the text of some turns: of a conversation of three turns it does not "
            f"write turn {', '.join(lost)}. Give the tokenizer a template that writes every turn."
        )
    if system and system not in closed:
        raise ValueError(
            f"The tokenizer's chat template leaves the system message {system!r} out: set config.data.system=''."
        )
    if system == "":
        with contextlib.suppress(Exception):  # refused: no system message is passed
            emptied = render(chat._replace(system=""), turns, False)
            if len(emptied) < len(closed):  # the template inserts a text of its own where there is no message
                chat, closed = chat._replace(system=""), emptied
    closing = closed.rpartition(text)[2].lstrip()  # Llama 2 puts a space before its end token
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
    if not ids or not _is_special(tokenizer, ids[0]):
        raise ValueError(
            "The tokenizer's chat template does not close an assistant's turn with a special token, so a policy could "
            "not end its answers. Take a model whose template does."
        )
    opened = render(chat, (("user", "x"),), True)
    lead = closed.removeprefix(opened).partition(text)[0] if closed.startswith(opened) else ""
    return chat._replace(end=ids[0], lead=lead, opened=opened, closing=_closing(chat))


def _lost(chat: Chat) -> list[str]:
    """The turns of MARKS whose text the template leaves out."""
    marked = render(chat, MARKS, False)
    return [f"{i} ({role})" for i, (role, text) in enumerate(MARKS, 1) if text not in marked]


def _writes_every_turn(chat: Chat) -> bool:
    with contextlib.suppress(Exception):  # a template that takes parts may fail on texts, and the other way round
        return not _lost(chat)
    return False


def _closing(chat: Chat) -> str:
    """What stands at a conversation's end and not in the prompt.

    An end token that no generation prompt follows (Phi 3's template writes either), and white space that belongs to the tail,
    since the tokenizer joins it with the text that follows.
    """
    plain, opened = (render(chat, (("user", "x"),), more) for more in (False, True))
    ended = "" if opened.startswith(plain) else chat.tokenizer.eos_token or ""
    said = plain.removesuffix(ended)
    if not opened.startswith(said):  # `tail_ids` refuses the template
        return ""
    whole, space = chat.tokenizer(opened, add_special_tokens=False)["input_ids"], said[len(said.rstrip()) :]

    def agrees(said: str) -> bool:
        head = chat.tokenizer(said, add_special_tokens=False)["input_ids"]
        return [*head, *_continued(chat, said, opened.removeprefix(said))] == whole

    moved = space and not agrees(said) and agrees(said.removesuffix(space))
    return (space if moved else "") + plain[len(said) :]


def _is_special(tokenizer, token: int) -> bool:
    """Whether text cannot spell the token: it has a role, or the tokenizer's files call it special (Gemma's end of turn)."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and added.special)


def describe(chat: Chat) -> str:
    """A line that identifies the format: a hash of the template, the system message, and the end token."""
    date = f", date {chat.date}" if "strftime_now" in chat.tokenizer.chat_template else ""
    return f"template {_digest(chat.tokenizer.chat_template)[:16]}, system {chat.system!r}, end {chat.end}{date}"


def prompt_ids(chat: Chat, turns: Turns) -> list[int]:
    """Token ids of a conversation, without `closing` and the generation prompt. The template decides on begin tokens."""
    text, first = render(chat, turns, False).removesuffix(chat.closing), chat.tokenizer.bos_token
    if chat.begins and first and text.startswith(first):
        ids = chat.tokenizer(text.removeprefix(first), add_special_tokens=False)["input_ids"]
        return [chat.tokenizer.bos_token_id, *ids]
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def need_known(chat: Chat, vocabulary: int, rows: Iterable[Sequence[int]], what: str) -> None:
    """Refuses token ids that the embedding has no row for: it would read its last row in their place.

    Args:
      chat: whose tokenizer names the token.
      vocabulary: V, rows of the embedding.
      rows: of token ids.
      what: they are, for the message; the first bad row's index is put after it where there are several.

    Raises:
      ValueError: names the token, its id, V and the first row that holds it.
    """
    rows = list(rows)
    for i, row in enumerate(rows):
        row = np.asarray(row, np.int64)
        if (row >= vocabulary).any():
            token = int(row[row >= vocabulary][0])
            name, which = chat.tokenizer.convert_ids_to_tokens(token), f" {i}" if len(rows) > 1 else ""
            raise ValueError(
                f"{what}{which} has the token {name!r} of id {token}, and the policy's embedding has V = {vocabulary} rows, "
                f"for ids 0 to {vocabulary - 1}. Take the tokenizer that belongs to these weights, or add rows to them "
                "(resize_token_embeddings of transformers)."
            )


def tail_ids(chat: Chat) -> list[int]:
    """Token ids of the generation prompt, which the template puts between a conversation and an answer.

    Raises:
      ValueError: the template changes the conversation itself when it adds the generation prompt.
    """
    turns = (("user", "x"),)
    plain, opened = render(chat, turns, False).removesuffix(chat.closing), render(chat, turns, True)
    if not opened.startswith(plain):
        raise ValueError(
            "The chat template rewrites a conversation when an answer is to follow; it cannot be used here."
        )
    return _continued(chat, plain, opened[len(plain) :])


def response_ids(chat: Chat, text: str, limit: int | None = None) -> list[int]:
    """Token ids of an answer and the end-of-turn token, cut to `limit` tokens; None keeps all. A cut answer has no end."""
    # After the generation prompt and not as a text of its own: sentencepiece would put a space before it.
    ids = [*_continued(chat, chat.opened, chat.lead + text), chat.end]
    return ids[:limit]


def transcript(turns: Turns) -> str:
    """A conversation as hh-rlhf writes it, up to the answer: the prompt of rewards that read text.

    The space before the last line is as in the published evaluation (RiC, arXiv 2402.10207).
    """
    speaker = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "".join(f"\n\n{speaker[role]}: {text}" for role, text in turns) + " \n\nAssistant:"


def is_transcript(text: str) -> bool:
    """Whether a text is of `transcript`'s form."""
    return text.startswith("\n\n") and text.endswith(" \n\nAssistant:")


def spoken(text: str) -> str:
    """What a person said, of a prompt's text: of a transcript of one turn that turn alone, of several all of them.

    Other texts are returned as they are. A transcript does not tell a turn that quotes "\n\nAssistant: " from several turns:
    such a turn is returned as several are, with "Human: " before it.
    """
    if not is_transcript(text):
        return text
    turns = text.removesuffix(" \n\nAssistant:").strip("\n")
    alone = "\n\nAssistant: " not in turns and turns.startswith("Human: ")
    return turns.removeprefix("Human: ") if alone else turns


def pad_left(
    rows: Sequence[Sequence[int]],
    length: int,
    pad: int,
    ids: Sequence[int] | None = None,
    text: Sequence[str] = (),
) -> Prompts:
    """Rows of token ids to Prompts [R, length], padded on the left; named by `ids`, or 0 … R - 1.

    Raises:
      ValueError: a row is empty or longer than `length`.
    """
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if not 0 < len(row) <= length:
            raise ValueError(f"Prompt {i} has {len(row)} tokens, there is room for 1 to {length}.")
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    ids = np.arange(len(rows), dtype=np.int32) if ids is None else np.asarray(ids, np.int32)
    return Prompts(tokens, mask, ids, tuple(text))


def encode_prompts(chat: Chat, conversations: Sequence[Turns], length: int) -> tuple[Prompts, int]:
    """A data set's conversations to Prompts; conversations longer than `length` are left out.

    A prompt's id is a hash of its text, so its samples do not depend on the other rows. A repeated prompt is kept once.

    Returns:
      Prompts, and how many conversations were too long.
    """
    rows, too_long = {}, 0
    for turns in conversations:
        ids = prompt_ids(chat, turns)
        if len(ids) > length:
            too_long += 1
        else:
            rows.setdefault(hash_of(name_of(turns)), (ids, transcript(turns)))
    tokens, texts = zip(*rows.values(), strict=True) if rows else ((), ())
    return pad_left(tokens, length, chat.pad, list(rows), texts), too_long


def encode_explicit(chat: Chat, texts: Sequence[str], length: int) -> Prompts:
    """Prompts that a person gave, one human turn each; errors as of `encode_conversations`."""
    return encode_conversations(chat, [(("user", text),) for text in texts], length)


def encode_conversations(chat: Chat, conversations: Sequence[Turns], length: int) -> Prompts:
    """Conversations that a person gave to Prompts, a row each, repeated ones as well.

    Raises:
      ValueError: some are longer than `length`; the message says which, and by how much the first.
    """
    rows = [prompt_ids(chat, turns) for turns in conversations]
    long = [number for number, row in enumerate(rows) if len(row) > length]
    if long:
        first, named = long[0], ", ".join(map(str, long[:10])) + " …" * (len(long) > 10)
        advice = "shorten it."
        if len(rows) > 1:
            advice = f"of {len(rows)} prompts {len(long)} are too long, leave out or shorten {named}."
        raise ValueError(
            f"The prompt {conversations[first][-1][1][:40]!r}… has {len(rows[first])} tokens with its chat template, there is "
            f"room for {length} (config.data.prompt_length, the longest that the policy was trained on): {advice}"
        )
    ids = [hash_of(name_of(turns)) for turns in conversations]
    return pad_left(rows, length, chat.pad, ids, list(map(transcript, conversations)))


def split_of(turns: Turns) -> str:
    """The split that a conversation belongs to, a key of SPLITS; neither seed nor file order matters.

    It depends on the first human turn alone, so conversations with the same first turn (hh-rlhf has many) are never in two
    splits.
    """
    position = position_of(turns[0][1])
    for name, share in SPLITS.items():
        position -= share
        if position < 0:
            return name
    return name  # in floating point the shares may sum to less than 1


def position_of(text: str) -> float:
    """The position of a text in [0, 1) by a hash that ignores case and whitespace; it decides the splits."""
    return int(_digest(" ".join(text.casefold().split()))[:8], 16) / 2**32


def render(chat: Chat, turns: Turns, generation_prompt: bool) -> str:
    """A conversation as the template writes it; with `generation_prompt`, up to the start of an answer."""
    messages = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    messages += [{"role": role, "content": text} for role, text in turns]
    return chat.tokenizer.apply_chat_template(
        messages,
        chat_template=dated(chat.tokenizer.chat_template, chat.date),
        tokenize=False,
        add_generation_prompt=generation_prompt,
    )


def name_of(turns: Turns) -> str:
    """A text that identifies a conversation: only equal conversations have equal ones."""
    return "\0".join(f"{role}\0{text}" for role, text in turns)


def hash_of(name: str) -> int:
    """A prompt's id: 31 bits of the name's hash."""
    return int(_digest(name)[:8], 16) & 0x7FFFFFFF


def _continued(chat: Chat, before: str, text: str) -> list[int]:
    """Token ids of `text` after `before`; if the two share a token, those of `text` after a newline, or else alone.

    Alone, a tokenizer with a dummy prefix (Llama 2's) would put a space before the text. It never merges newlines.
    """

    def encode(text: str) -> list[int]:
        return chat.tokenizer(text, add_special_tokens=False)["input_ids"]

    for start in (before, "\n"):
        head, joined = encode(start), encode(start + text)
        if joined[: len(head)] == head:
            return joined[len(head) :]
    return encode(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
