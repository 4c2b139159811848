"""Objectives in words: a decoder is asked whether a response satisfies a sentence, and its log-odds are the reward.

The question is one user turn in the judge's chat template. "yes" and "no" are the sets of single tokens that spell the two
words (with capitals, with a space before). The reward is

    logsumexp(logits[yes]) − logsumexp(logits[no])

at the first position of the answer: the log-odds of yes over no, given that the answer is one of them. Nothing is sampled.
Where the template writes something before an answer, as Qwen 3's does an empty pair of thinking tags, the position is behind.

Prompt and response enter the template as token ids, with special tokens spelled out as text, so they cannot end the turn.
A pair that is too long first loses the beginning of its prompt, then the end of its response.

Letters: R rows, S tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.data import chat as chats
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rewards.formats import Encoded, limit
from meal_jax.rewards.text import ModelReward, PyTree

MARKS = ("[[PROMPT]]", "[[RESPONSE]]")
TURN = (
    f"Below are a prompt and a response to it.\n\nPrompt:\n{MARKS[0]}\n\nResponse:\n{MARKS[1]}\n\n"
    "Question about the response: {question}\nAnswer with yes or no."
)
SPELLINGS = {
    word: [f"{space}{form}" for space in ("", " ") for form in (word, word.title(), word.upper())]
    for word in ("yes", "no")
}


class Question(NamedTuple):
    """A question in a judge's tokens.

    Attributes:
      tokenizer: the judge's.
      parts: ids before the prompt, between prompt and response, and after the response.
      yes, no: ids that spell the two answers.
      limit: max tokens of the whole row.
    """

    tokenizer: object
    parts: tuple[list[int], list[int], list[int]]
    yes: list[int]
    no: list[int]
    limit: int


def make_question(tokenizer, question: str, max_tokens: int | None = None) -> Question:
    """Encodes a question in the tokenizer's chat template.

    Args:
      tokenizer: of the judge.
      question: a sentence that yes or no answers.
      max_tokens: of a row; None for `formats.limit`.

    Raises:
      ValueError: no chat template, one that loses the text, or no single token for yes or for no; or no room left.
    """
    try:
        chat = chats.make(tokenizer, None)
    except ValueError as error:
        raise ValueError(f"judge:{question} cannot be asked of this model: {error}") from error
    rendered = chats.render(chat, (("user", TURN.format(question=question)),), True)
    if chat.lead.strip():  # Qwen 3's empty thoughts: without them the first token would begin thoughts, not the answer
        rendered += chat.lead
    before, first, rest = rendered.partition(MARKS[0])
    between, second, after = rest.partition(MARKS[1])
    if not first or not second:
        raise ValueError(f"judge:{question} cannot be asked: the chat template does not repeat a user's text.")
    parts = tuple(_ids(tokenizer, part) for part in (before, between, after))
    yes, no = (_spellings(tokenizer, word) for word in SPELLINGS)
    if not yes or not no or set(yes) & set(no):
        raise ValueError(f"judge:{question} cannot be asked: the tokenizer has no single tokens for yes and for no.")
    max_tokens = limit(tokenizer) if max_tokens is None else max_tokens
    if sum(map(len, parts)) + 2 > max_tokens:
        raise ValueError(
            f"judge:{question} is too long: it takes {sum(map(len, parts))} tokens, there is room for {max_tokens}."
        )
    return Question(tokenizer, parts, yes, no, max_tokens)


def encode_pair(question: Question, prompt: str, response: str) -> Encoded:
    """The ids of a question about a prompt and a response."""
    before, between, after = question.parts
    room = question.limit - sum(map(len, question.parts))
    answer = _ids(question.tokenizer, response, split_special_tokens=True)[:room]
    context = _ids(question.tokenizer, prompt, split_special_tokens=True)
    context = context[max(len(context) - (room - len(answer)), 0) :]
    ids = [*before, *context, *between, *answer, *after]
    return Encoded(ids, [0] * len(ids))


def make_reward(
    question: Question, transformer: TransformerConfig, params: PyTree, mesh: jax.sharding.Mesh, **options
) -> ModelReward:
    """The text reward that a question defines.

    Args:
      question: from `make_question`.
      transformer: the judge's architecture, without adapters.
      params: {"transformer": …}, on the mesh.
      mesh: rows are split over its data axes.
      **options: batch_size and kept of `ModelReward`.

    Returns:
      ModelReward.
    """
    policy = Policy(transformer, Conditioning("none"))
    yes, no = jnp.asarray(question.yes), jnp.asarray(question.no)

    def score(params, tokens, mask, types):
        prefilled = policy.apply({"params": params}, tokens, mask, method="prefill")
        logits = policy.apply({"params": params}, prefilled.last, method="unembed")  # [R, V]
        return jax.nn.logsumexp(logits[:, yes], axis=-1) - jax.nn.logsumexp(logits[:, no], axis=-1)

    pad = question.tokenizer.pad_token_id
    return ModelReward(
        functools.partial(encode_pair, question),
        score,
        params,
        mesh,
        limit=question.limit,
        pad=pad,
        left=True,
        **options,
    )


def _ids(tokenizer, text: str, **options) -> list[int]:
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


def _spellings(tokenizer, word: str) -> list[int]:
    return sorted({ids[0] for form in SPELLINGS[word] if len(ids := _ids(tokenizer, form)) == 1})
