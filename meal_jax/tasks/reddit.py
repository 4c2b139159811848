"""The Reddit summary benchmark: posts of summarize-from-feedback, each to be summed up in one sentence.

Posts have more than 100 and fewer than 1200 characters, newlines become spaces, each id counts once, and the prompt has 8
to 512 tokens under the tokenizers of the policy and of every reward model. `config.data.split`:

    published   trained on the posts of `train`, tested on the first 2000 ids in sorted order of `validation`, as in the
                published evaluation (RiC, arXiv 2402.10207)
    hash        for a part of the files: every post at hand, divided by a hash of its id

With `config.data.posts`, posts are read from there (`meal_jax.data.tldr`), each with its author's own summary.
Rewards are `config.reward.sources`, whose prompt is the post, or heads in `config.reward.heads`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meal_jax.data import chat as chats
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.data import templates, tldr
from meal_jax.data.prompts import Prompts
from meal_jax.tasks import language
from meal_jax.tasks.task import Task

FIRST = 2000  # ids of the published evaluation
REFERENCE = (
    -2.5
)  # for heads, whose scores have mean 0 and standard deviation 1 over people's pairs; see tasks/assistant.py


def build(config) -> Task:
    """The benchmark for `config`; errors as of `language.build`."""
    task = language.build(config, "reddit", load, REFERENCE)
    return task._replace(ask=functools.partial(templates.ask_for_summary, template=config.data.template))


def load(config, chat: chats.Chat, tokenizers: dict[str, Any]) -> tuple[Prompts, Prompts, str]:
    """Training prompts, test prompts and the name of the evaluation set.

    Raises:
      FileNotFoundError: `config.data.path` is not there, or lacks a split.
      ValueError: a row that cannot be read, or too few prompts.
    """
    train, test, name, path = read_rows(config)

    def prompt_of(row):
        return templates.reddit_prompt(row.text)

    train, test = (templates.within(part, prompt_of, tokenizers)[0] for part in (train, test))
    return *language.encode_splits(chat, train, test, config, str(path)), name


def read_rows(config) -> tuple[list[templates.Row], list[templates.Row], str, Path]:
    """Rows to train on and to evaluate on, before limits of length; the rest and errors as of `read_posts`."""
    train, test, name, path = read_posts(config)
    rows = [templates.reddit_rows(posts, config.data.template) for posts in (train, test)]
    return rows[0], rows[1][:FIRST] if config.data.split == "published" else rows[1], name, path


def read_posts(config) -> tuple[list[sff.Post], list[sff.Post], str, Path]:
    """Posts to train on, those of the evaluation split, the name of the evaluation set, and where they were read."""
    if config.data.posts:
        if config.data.split == "published":
            raise ValueError("config.data.posts has no published split: set config.data.split=hash.")
        path = Path(config.data.posts).expanduser()
        own_posts = [row.post for row in tldr.read_summarised(path)]
        return *hash_split(config, own_posts), "posts with their authors' summaries, hash split", path
    path = Path(config.data.path).expanduser()
    part = "hash split" if config.data.split == "hash" else f"validation, first {FIRST} ids"
    return *posts_of(config, sff.read_comparisons(path), path), f"summarize-from-feedback comparisons, {part}", path


def answers(config) -> dict[int, list[str]]:
    """What fine-tuning learns, by the id of its prompt: authors' own summaries, else the preferred ones of comparisons."""
    if config.data.posts:
        pairs = [(summarised.post.id, summarised.summary) for summarised in tldr.read_summarised(config.data.posts)]
    else:
        pairs = [(row.id, row.answers[0]) for row in sff.read_comparisons(config.data.path)]
    out: dict[int, list[str]] = {}
    for name, text in pairs:
        out.setdefault(chats.hash_of(name), []).append(text)
    return out


def posts_of(config, comparisons: Sequence[sff.Comparison], path: Path) -> tuple[list[sff.Post], list[sff.Post]]:
    """The posts to train on and those of the evaluation split, each sorted by id.

    Raises:
      FileNotFoundError: `config.data.split=published` and one of the splits is not there.
    """
    if config.data.split == "published":
        parts = [sff.posts(row for row in comparisons if row.split == split) for split in ("train", "validation")]
        for split, posts in zip(("train", "validation"), parts, strict=True):
            if not posts:
                raise FileNotFoundError(
                    f"{path} has no posts of the {split} split. {sff.HINT} Or set config.data.split=hash, which divides the "
                    "posts at hand."
                )
        return parts[0], parts[1]
    return hash_split(config, sff.posts(comparisons))


def hash_split(config, posts: Sequence[sff.Post]) -> tuple[list[sff.Post], list[sff.Post]]:
    """The posts to train on and those to evaluate on, by a hash of the id."""
    splits = [chats.split_of((("user", post.id),)) for post in posts]
    trained = language.training_splits(config)
    return (
        [post for post, split in zip(posts, splits, strict=True) if split in trained],
        [post for post, split in zip(posts, splits, strict=True) if split == "eval"],
    )
