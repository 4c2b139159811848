"""Pairs that differ in faithfulness: a post's own summary against another post's, and against itself with facts swapped.

A swap replaces each number and name that summary and post share by one that the post does not have. Other summaries and
other facts come from posts of the same split, so heads are not fitted on text of held-out posts. The pairs depend on the
posts alone; there is no seed.
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


def split_of(summarised: Summarised) -> str:
    """The split of a post, by its id, as in the benchmark."""
    return chats.split_of((("user", summarised.post.id),))


def make_pairs(posts: Sequence[Summarised]) -> list[tuple[Summarised, str, str]]:
    """(post, unfaithful summary, MISMATCHED or SWAPPED) for posts with different ids, in the order of a hash of the ids.

    A post gets a mismatch if another post of its split has a different summary, and a swap if its summary shares a fact
    with it.
    """
    out = []
    for split in chats.SPLITS:
        # Neighbours mostly share a subreddit, so their summaries are harder to tell apart.
        members = sorted((p for p in posts if split_of(p) == split), key=lambda p: (p.post.subreddit, p.post.id))
        pools = {kind: sorted({e for p in members for e in kind.findall(p.summary)}) for kind in (NUMBER, NAME)}
        for i, summarised in enumerate(members):
            if (other := _other_summary(members, i)) is not None:
                out.append((summarised, other, MISMATCHED))
            swapped = summarised.summary
            for kind, pool in pools.items():
                swapped = swap(swapped, summarised, kind, pool)
            if swapped != summarised.summary:
                out.append((summarised, swapped, SWAPPED))
    # Not the hash that decides the splits: the first pairs must come from all splits, since config.data.pairs takes these.
    return sorted(out, key=lambda pair: (_number(f"order {pair[0].post.id}"), pair[2]))


def swap(summary: str, summarised: Summarised, kind: re.Pattern, pool: Sequence[str]) -> str:
    """Replaces each fact of one kind that summary and post share by a fact of the pool that neither of them has.

    A repeated fact gets the same replacement each time. If the pool has no new fact, the fact stays.
    """
    post = summarised.post
    present = {word.casefold() for word in WORD.findall(f"{post.title} {post.post} {summarised.summary}")}

    def replace(match: re.Match) -> str:
        fact = match[0]
        if fact.casefold() not in {word.casefold() for word in WORD.findall(post.post)}:
            return fact
        start = _number(f"{post.id} {fact}")
        rotated = (pool[(start + i) % len(pool)] for i in range(len(pool)))
        return next((other for other in rotated if other.casefold() not in present), fact)

    return kind.sub(replace, summary)


def _other_summary(posts: Sequence[Summarised], index: int) -> str | None:
    """The next different summary of a different post; None if all are the same."""
    own = posts[index]
    for step in range(1, len(posts)):
        other = posts[(index + step) % len(posts)]
        if other.summary.casefold() != own.summary.casefold() and other.post.post != own.post.post:
            return other.summary
    return None


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
