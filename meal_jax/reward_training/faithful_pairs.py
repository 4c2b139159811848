"""Pairs that differ in faithfulness: a post's own summary against another post's, and against itself with facts swapped.

A swap replaces a number or a name of the summary that the post has too by one that the post has not. Other summaries and
other facts come from posts of the same split, so nothing of a held-out post is seen in fitting. All is a function of the
posts: no seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from meal_jax.data import chat as chats
from meal_jax.data.tldr import Summarised

NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w])")
# A capitalised word inside a sentence: after a word or a comma, so that the first words of sentences are left alone.
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")
WORD = re.compile(r"\w+(?:[.,]\d+)*")
MISMATCHED, SWAPPED = "mismatched", "swapped"


def split_of(told: Summarised) -> str:
    """The split of a post, by its id, as in the benchmark."""
    return chats.split_of((("user", told.post.id),))


def pairs(posts: Sequence[Summarised]) -> list[tuple[Summarised, str, str]]:
    """(post, unfaithful summary, MISMATCHED or SWAPPED) for posts with different ids, in the order of a hash of these.

    Each post has a mismatch if another of its split has another summary, and a swap if its summary shares a fact with it.
    """
    out = []
    for split in chats.SPLITS:
        # Neighbours mostly have the subreddit in common, which makes their summaries less easy to tell apart.
        mine = sorted((p for p in posts if split_of(p) == split), key=lambda p: (p.post.subreddit, p.post.id))
        pools = {kind: sorted({e for p in mine for e in kind.findall(p.summary)}) for kind in (NUMBER, NAME)}
        for i, told in enumerate(mine):
            if (other := _other(mine, i)) is not None:
                out.append((told, other, MISMATCHED))
            swapped = told.summary
            for kind, pool in pools.items():
                swapped = swap(swapped, told, kind, pool)
            if swapped != told.summary:
                out.append((told, swapped, SWAPPED))
    # Not the hash that splits are cut by: the first so many of these pairs shall be of all splits.
    return sorted(out, key=lambda pair: (_number(f"order {pair[0].post.id}"), pair[2]))


def swap(summary: str, told: Summarised, kind: re.Pattern, pool: Sequence[str]) -> str:
    """The summary with each fact of a kind that the post has too replaced by one of the pool that neither of them has.

    A fact that stands twice is replaced by the same one twice; where the pool has none that is new, it stays.
    """
    said = {word.casefold() for word in WORD.findall(f"{told.post.title} {told.post.post} {told.summary}")}

    def replace(match: re.Match) -> str:
        fact = match[0]
        if fact.casefold() not in {word.casefold() for word in WORD.findall(told.post.post)}:
            return fact
        start = _number(f"{told.post.id} {fact}")
        turned = (pool[(start + i) % len(pool)] for i in range(len(pool)))
        return next((other for other in turned if other.casefold() not in said), fact)

    return kind.sub(replace, summary)


def _other(posts: Sequence[Summarised], at: int) -> str | None:
    """The next post's summary that is not this post's own, None if all are alike."""
    told = posts[at]
    for step in range(1, len(posts)):
        other = posts[(at + step) % len(posts)]
        if other.summary.casefold() != told.summary.casefold() and other.post.post != told.post.post:
            return other.summary
    return None


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
