"""The embedded benchmark of real text: a small model continues a story, with more speech or more cheer.

The policy is the 260K-parameter story model that the package holds (`policy.source="stories260k"`, see
meal_jax/shipped/stories260k/README.md), the prompts are its beginnings of stories (`tasks/story_prompts.py`), or JSON lines of
one's own at `config.data.path`. Rewards count what a person sees in the answer:

    dialogue   √ of the share of the answer that is speech, from a quotation mark to the next, or to the answer's end
    cheerful   √ of the share of its words that are cheerful and the narrator's: those of CHEERFUL outside speech

Speech and narration share an answer's few tokens, so each costs the other. The root makes the first quotation mark worth more
than the tenth, so that a mixture is worth more than a coin's toss between extremes. Both are counted in characters inside
the jitted step (`rewards/characters.py`). A third, `short`, is a Python function of texts: `tasks/story_text.py`.

Two more read the beginning as well, so that beginnings differ in what they can attain (`configs/stories.py:attainable`):

    fitting_dialogue   dialogue, and 0 where the beginning has a word of SILENT: shy and small heroes' stories have no speech
    fitting_cheerful   cheerful, and 0 where it has a word of GRAVE: brave and curious heroes' stories have no cheer

Each silences a third of the embedded beginnings, and a third can attain both.

Letters: B prompts, N candidates, K objectives.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from meal_jax.data import chat as chats
from meal_jax.data import own, templates
from meal_jax.data.prompts import Prompts
from meal_jax.rewards import characters
from meal_jax.tasks import assistant, language
from meal_jax.tasks.story_text import CHEERFUL, GRAVE, SILENT
from meal_jax.tasks.task import Task

PROMPTS = Path(__file__).with_name("story_prompts.jsonl")
TYPES = Path(__file__).with_name("story_prompts_types.jsonl")  # those of config.data.split=types
REFERENCE = 0.0  # of the hypervolume: no reward is below it


def dialogue(text: jax.Array) -> jax.Array:
    """√ of the share of an answer's characters [..., C], spaces left out, that are speech: [...].

    A speech that the end cuts off counts, so a mark that is never closed makes all the rest speech. Counting closed speech
    alone took the rewards' conflict away in a trial: every answer became short speeches and "he smiled".
    """
    printed = characters.printed(text)
    return jnp.sqrt(characters.share(characters.count(printed & characters.spoken(text)), characters.count(printed)))


def cheerful(text: jax.Array) -> jax.Array:
    """√ of the share of an answer's words that are of CHEERFUL and outside speech, from characters [..., C]: [...]."""
    matches = characters.any_word(text, CHEERFUL) & ~characters.spoken(text)
    return jnp.sqrt(characters.share(characters.count(matches), characters.count(characters.first_letters(text))))


def lacks(beginning: jax.Array, words: Sequence[str]) -> jax.Array:
    """1 where characters [..., C] hold none of these words, else 0: [...] float32."""
    return 1.0 - jnp.any(characters.any_word(beginning, words), axis=-1)


# What is counted in an answer, and the words of a beginning that leave nothing to count.
REWARDS = {
    "dialogue": (dialogue, ()),
    "cheerful": (cheerful, ()),
    "fitting_dialogue": (dialogue, SILENT),
    "fitting_cheerful": (cheerful, GRAVE),
}


def build(config) -> Task:
    """The benchmark for `config`; errors as of `language.build`."""
    if config.reward.heads:  # the user's own, on this model
        return language.build(config, "stories", load, assistant.REFERENCE)
    return language.build(config, "stories", load, REFERENCE, counted)


def counted(objectives: tuple[str, ...], chat: chats.Chat, vocabulary: int) -> language.Counted:
    """The rewards of these objectives, by name; errors as of `need_rewards`."""
    need_rewards(objectives)
    spellings = jnp.asarray(characters.spellings(chat.tokenizer, vocabulary))
    return language.Counted(functools.partial(reward, objectives), {"spellings": spellings})


def need_rewards(objectives: tuple[str, ...]) -> None:
    """Refuses objectives that are no reward of this benchmark.

    Raises:
      ValueError: names them, and REWARDS.
    """
    unknown = [name for name in objectives if name not in REWARDS]
    if unknown:
        raise ValueError(
            f"The benchmark stories has no reward {', '.join(unknown)}; it has {', '.join(REWARDS)}. Set config.objectives to "
            "some of these, or give the others a source in config.reward.sources: python:meal_jax.tasks.story_text:short."
        )


def reward(objectives: tuple[str, ...], params: dict[str, jax.Array], batch, responses, hidden=None) -> jax.Array:
    """r [B, N, K] of responses; `params` holds "spellings", see `characters.spellings`."""
    text = characters.spell(responses.tokens, responses.mask, params["spellings"])
    rewards = [REWARDS[name] for name in objectives]
    columns = [count(text) for count, _ in rewards]
    if any(words for _, words in rewards):
        beginning = characters.spell(batch.tokens[:, None], batch.mask[:, None], params["spellings"])  # [B, 1, C]
        columns = [r * lacks(beginning, words) for r, (_, words) in zip(columns, rewards, strict=True)]
    return jnp.stack(columns, axis=-1)


def load(config, chat: chats.Chat, tokenizers: dict[str, Any]) -> tuple[Prompts, Prompts, str]:
    """Training prompts, test prompts and the name of the evaluation set.

    Raises:
      FileNotFoundError: `config.data.path` is not there, or lacks a split.
      ValueError: a row that cannot be read, or too few prompts.
    """
    name = "story beginnings" + " of types not trained on" * (config.data.split == "types")
    if config.data.path:
        name = assistant.own_rows(config, _path(config))[2]
    return *language.encode_splits(chat, *read_rows(config), config, str(_path(config))), name


def read_rows(config) -> tuple[list[templates.Row], list[templates.Row]]:
    """Beginnings to train on and to evaluate on, before limits of length; errors as of `load`."""
    train, test, _ = assistant.own_rows(config, _path(config))
    return tuple([row._replace(text=" ".join(text for _, text in row.turns)) for row in rows] for rows in (train, test))


def _path(config) -> Path:
    if config.data.path:
        return Path(config.data.path).expanduser()
    return TYPES if config.data.split == "types" else PROMPTS


def answers(config) -> dict[int, list[str]]:
    """What fine-tuning learns, by the id of its prompt: "response" or "chosen" of one's own rows."""
    out: dict[int, list[str]] = {}
    for turns, text in own.read_answers(_path(config)):
        out.setdefault(chats.hash_of(chats.name_of(turns)), []).append(text)
    return out
