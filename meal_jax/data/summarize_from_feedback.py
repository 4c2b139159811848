"""Human comparisons of summaries in the schema of OpenAI's summarize-from-feedback, `comparisons`; and their posts.

A row has `info` (id, post, title, subreddit; news articles have id, article and site instead), two `summaries` (text,
policy), `choice` (0 or 1, the preferred), `split` (train, valid1, valid2) and `batch`. Rows come from published files or
from the output of `meal_jax.data.prepare`; the hub's parquet files have the same fields.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from meal_jax.data import files, read_prepared

SUFFIXES = (*files.SUFFIXES, ".json")  # the published batch3.json … hold JSON lines
CONFIG = "comparisons"
SPLITS = {"train": "train", "valid1": "validation", "valid2": "validation"}  # as the hub divides the rows
INFO = ("title", "subreddit", "post", "article", "site")
HINT = (
    "The comparisons are at https://huggingface.co/datasets/openai/summarize_from_feedback (posts CC-BY-4.0): fetch them "
    "with `python -m meal_jax.data.prepare --dataset=summarize_from_feedback`, or give the path where you have them."
)


class Comparison(NamedTuple):
    """One person's choice between two summaries.

    Attributes:
      id: of the post or article, as published ("t3_…").
      title, subreddit, post, article, site: of the summarised text; "" if it has none.
      summaries, policies: two texts, and the names of the policies that wrote them.
      choice: index of the preferred one.
      confidence: the person's, as published; 0 where none was given.
      split: "train" or "validation".
      batch: of labels, as published.
      source: "file:line".
    """

    id: str
    title: str
    subreddit: str
    post: str
    article: str
    site: str
    summaries: tuple[str, str]
    policies: tuple[str, str]
    choice: int
    confidence: int
    split: str
    batch: str
    source: str

    @property
    def answers(self) -> tuple[str, str]:
        """The preferred summary and the other, stripped."""
        return self.summaries[self.choice].strip(), self.summaries[1 - self.choice].strip()


class Post(NamedTuple):
    """A post to summarise: id, title, subreddit and text as published."""

    id: str
    title: str
    subreddit: str
    post: str


def read_comparisons(path: str | os.PathLike, split: str | None = None) -> list[Comparison]:
    """Reads a file, a directory's files in the order of their names, or what `prepare` wrote there.

    Args:
      path: .jsonl, .jsonl.gz, .json (JSON lines too) or .parquet file; a directory of them; a prepared data set; or a
        directory with one of these in `comparisons`.
      split: "train" or "validation" reads only the rows of this split, by their own field; None reads all.

    Raises:
      FileNotFoundError: the path does not exist, or has no such files.
      ValueError: a row that cannot be read; the message names file and line.
    """
    return [row for row in iterate_comparisons(path) if split in (None, row.split)]


def iterate_comparisons(path: str | os.PathLike) -> Iterator[Comparison]:
    """The comparisons of `path`, one by one; errors as of `read_comparisons`."""
    path = Path(path).expanduser()
    path = path / CONFIG if (path / CONFIG).is_dir() else path
    if read_prepared.directory(path):
        for source, record in read_prepared.records(path):
            yield from_record(record, source)
        return
    for file in files.find(path, HINT, SUFFIXES):
        for source, row in files.rows(file):
            yield parse(row, source)


def posts(comparisons: Iterable[Comparison]) -> list[Post]:
    """The posts of comparisons, one per id (the first row's text), sorted by id; news articles are left out."""
    by_id: dict[str, Post] = {}
    for row in comparisons:
        if row.post:
            by_id.setdefault(row.id, Post(row.id, row.title, row.subreddit, row.post))
    return [by_id[name] for name in sorted(by_id)]


def parse(row: dict[str, Any], source: str) -> Comparison:
    """A published row.

    Raises:
      ValueError: it does not follow the schema; names field, file and line.
    """
    schema = "each line needs info, two summaries, choice and split, as the published `comparisons` have."
    info, summaries, extra = row.get("info"), row.get("summaries"), row.get("extra") or {}
    if not isinstance(info, dict):
        raise ValueError(f"{source} has no object in info; {schema}")
    files.need_text(info, ("id",), f"{source}: info", schema)
    if "post" not in info and "article" not in info:
        raise ValueError(f"{source}: info has neither post nor article; {schema}")
    bad = [name for name in INFO if not isinstance(info.get(name), str | None)]
    if bad:
        raise ValueError(f"{source}: info has something else than text in {' and '.join(bad)}; {schema}")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise ValueError(f"{source} has not two objects in summaries; {schema}")
    for i, summary in enumerate(summaries):
        files.need_text(summary, ("text",), f"{source}: summaries[{i}]", schema)
    if row.get("choice") not in (0, 1) or isinstance(row["choice"], bool):
        raise ValueError(f"{source} has choice {row.get('choice')!r}, which is neither 0 nor 1; {schema}")
    if row.get("split") not in SPLITS:
        raise ValueError(f"{source} has split {row.get('split')!r}, which is none of {', '.join(SPLITS)}; {schema}")
    return Comparison(
        id=info["id"],
        **{name: info.get(name) or "" for name in INFO},
        summaries=tuple(summary["text"] for summary in summaries),
        policies=tuple(summary.get("policy") or "" for summary in summaries),
        choice=row["choice"],
        confidence=extra.get("confidence") or 0,
        split=SPLITS[row["split"]],
        batch=row.get("batch") or "",
        source=source,
    )


def to_record(row: Comparison) -> dict[str, Any]:
    """A row as `prepare` writes it: flat, one value per field."""
    flat = row._asdict()
    for name, field in (("summary", "summaries"), ("policy", "policies")):
        flat[f"{name}_0"], flat[f"{name}_1"] = flat.pop(field)
    del flat["source"]
    return flat


def from_record(record: dict[str, Any], source: str) -> Comparison:
    """The row of such a record.

    Raises:
      ValueError: it is of another data set; names it.
    """
    record, names = dict(record), to_record(Comparison(*[("", "")] * len(Comparison._fields))).keys()
    if record.keys() != names:
        raise ValueError(
            f"{source} is no row that `python -m meal_jax.data.prepare --dataset=summarize_from_feedback` wrote: it has the "
            f"fields {', '.join(record)}."
        )
    pairs = {
        field: (record.pop(f"{name}_0"), record.pop(f"{name}_1"))
        for name, field in (("summary", "summaries"), ("policy", "policies"))
    }
    return Comparison(**record, **pairs, source=source)
