"""Reddit posts with their authors' own summaries, the TL;DR split off, as JSON lines.

    {"id": "t3_…", "subreddit": "…", "title": "…", "post": "…", "summary": "…"}

`subreddit` and `title` may be missing. Those of summarize-from-feedback's comparisons that include a human-written summary
(policy "ref") hold the same data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from meal_jax.data import files
from meal_jax.data.summarize_from_feedback import Comparison, Post

HINT = 'It holds JSON lines {"id": …, "post": …, "summary": …}, "title" and "subreddit" if you have them.'
WHY = "each line needs id, post and summary; splits are by id, which must be the one that other files call the post by."
HUMAN = "ref"  # what the comparisons call the author's own summary


class Summarised(NamedTuple):
    """A post, and its author's summary of it."""

    post: Post
    summary: str


def read_summarised(path: str | os.PathLike) -> list[Summarised]:
    """Reads a file or a directory's files: the first row of each id, sorted by id, without empty posts and summaries.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: a row that cannot be read; the message names file and line.
    """
    by_id: dict[str, Summarised] = {}
    for file in files.find(path, HINT):
        for source, row in files.rows(file):
            files.need_text(row, ("id", "post", "summary"), source, WHY)
            post = Post(row["id"], row.get("title") or "", row.get("subreddit") or "", row["post"])
            if post.post.strip() and row["summary"].strip():
                by_id.setdefault(post.id, Summarised(post, row["summary"].strip()))
    return [by_id[name] for name in sorted(by_id)]


def of_comparisons(comparisons: Iterable[Comparison]) -> list[Summarised]:
    """The posts of comparisons that include a human-written summary, with this summary; one per id, sorted by id."""
    by_id: dict[str, Summarised] = {}
    for row in comparisons:
        for summary, policy in zip(row.summaries, row.policies, strict=True):
            if policy == HUMAN and row.post and summary.strip():
                post = Post(row.id, row.title, row.subreddit, row.post)
                by_id.setdefault(row.id, Summarised(post, summary.strip()))
    return [by_id[name] for name in sorted(by_id)]
