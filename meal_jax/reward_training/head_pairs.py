"""Pairs of answers that reward heads are fitted on, by where they come from; an objective of the config names its kind.

hh_rlhf:FOLDER   people's choices between answers to a conversation, of config.data.path/FOLDER
comparisons      people's choices between summaries of a post, of config.data.path
faithful         summaries by a post's author against unfaithful ones (`faithful_pairs`), of config.data.posts,
                 or else of those comparisons in config.data.path that have an author's
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from meal_jax.data import hh_rlhf, templates, tldr
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.data.chat import Turns
from meal_jax.reward_training import faithful_pairs

KINDS = ("hh_rlhf:FOLDER", "comparisons", "faithful")


class Pair(NamedTuple):
    """Two answers to one conversation.

    Attributes:
      group: what decides the split: the first human turn, or the post's id.
      turns: the conversation, as the benchmark shows it to a policy.
      chosen, rejected: the better answer and the other.
      kind: of pairs within an objective whose accuracy is reported apart; "" for no such kinds.
    """

    group: str
    turns: Turns
    chosen: str
    rejected: str
    kind: str = ""


class Found(NamedTuple):
    """Pairs, what they are called on the card, and how many rows were left out, by reason."""

    pairs: list[Pair]
    name: str
    left_out: Counter


def read(source: str, data: Any) -> Found:
    """The pairs of an objective.

    Args:
      source: one of KINDS.
      data: `config.data`.

    Raises:
      FileNotFoundError, ValueError: as the readers of `meal_jax.data`; no such kind; or no post has an author's summary.
    """
    kind, _, folder = source.partition(":")
    path = Path(data.path).expanduser()
    if kind == "hh_rlhf" and folder:
        found = hh_rlhf.read(path / folder)
        pairs = [Pair(p.turns[0][1], p.turns, p.chosen, p.rejected) for p in found.pairs]
        return Found(pairs, folder, Counter(reason for _, reason in found.skipped))
    if source == "comparisons":
        return comparisons(sff.read(path))
    if source == "faithful":
        told = tldr.read(data.posts) if data.posts else tldr.of_comparisons(sff.rows(path))
        if not told:
            raise ValueError(f"{path} has no author's summary among its comparisons: set config.data.posts.")
        return unfaithful(told)
    raise ValueError(f"config.objectives names pairs by {source!r}, which is none of {', '.join(KINDS)}.")


def comparisons(rows: list[sff.Comparison]) -> Found:
    """Posts of any length, which `config.data.prompt_length` limits; news articles are left out."""
    pairs, left_out = [], Counter()
    for row in rows:
        chosen, rejected = row.answers
        reason = hh_rlhf.why_no_pair(chosen, rejected) if row.post else "a news article"
        if reason:
            left_out[reason] += 1
        else:
            pairs.append(Pair(row.id, templates.reddit_turns(row.post, "chat"), chosen, rejected))
    return Found(pairs, "comparisons", left_out)


def unfaithful(told: list[tldr.Summarised]) -> Found:
    """Each post of the benchmark's lengths with a mismatched summary, and with a swapped one where it has a fact to swap."""
    prompts = {row.name: row.turns for row in templates.reddit_rows([t.post for t in told], "chat")}
    used = [t for t in told if t.post.id in prompts]
    pairs = [Pair(t.post.id, prompts[t.post.id], t.summary, bad, kind) for t, bad, kind in faithful_pairs.pairs(used)]
    left_out = Counter({"a post of another length": len(told) - len(used)})
    return Found(pairs, "posts with their authors' summaries", +left_out)
