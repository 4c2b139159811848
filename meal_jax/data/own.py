"""Prompts or pairs of one's own, as JSON lines, parquet or a data set of TFDS.

    {"prompt": "Which tea?"}
    {"prompt": "Which tea?", "chosen": "Sencha.", "rejected": "No idea."}
    {"messages": [{"role": "user", "content": "Which tea?"}], "chosen": "Sencha.", "rejected": "No idea."}
    {"prompt": "Which tea?", "response": "Sencha."}

`prompt` is one human turn; `messages` a conversation that ends with one. `response` is an answer to learn from in
fine-tuning, which else takes `chosen`. A `split` (train, test or validation) may stand in a row, and rows of files whose
name's first or last word is one (train-0.jsonl, my_test.jsonl, dev.jsonl) have that one: such rows keep their split. Where a
directory is read, its whole name counts too; a single file's directory says nothing. The rest is divided by a hash of its
first human turn.

Rows as TRL, OpenAI and ShareGPT have them are read as well (`data.forms`).

`PATH:COLUMN` takes a column of JSON lines or a parquet file, or of all files of a directory, as the prompts, and
`OWNER/NAME:COLUMN` one of a data set of the hub (see `data.hub`), whose whole rows are `hub:OWNER/NAME`. A column `split` of
a file counts there too. A cell is a text or a list of messages, whose last answer, if it ends with one, is the row's
response. Empty cells are left out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from meal_jax.data import files, forms, hh_rlhf, hub, read_prepared
from meal_jax.data.files import SPLIT_FIELD

HINT = (
    'It holds JSON lines: {"prompt": …} or {"messages": […]}, and for pairs "chosen" and "rejected". A column of other JSON '
    "lines or of a parquet file is named by PATH:COLUMN, of a data set on the hub by OWNER/NAME:COLUMN, and all of its "
    "columns by hub:OWNER/NAME."
)
HUB = "hub:"  # before the id of a data set whose rows are read whole
SPLITS = {  # a row's `split` to what it means
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "valid": "validation", "validation": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
# Ends of names that a directory may hold beside the files that are read, worth a warning
UNREAD = (".csv", ".tsv", ".json", ".ndjson", ".jsonlines", ".txt", ".arrow", ".xlsx")
WHY = 'each line is {"prompt": text} or {"messages": [{"role": …, "content": …}, …]}.'


def read_rows(path: str | os.PathLike, split: str | None = None) -> hh_rlhf.Pairs:
    """Reads a file or all of a directory's in the order of their names.

    Args:
      path: .jsonl, .jsonl.gz or .parquet file, a directory of them or of a TFDS data set in array_record shards; with
        `:COLUMN` also a data set's id.
      split: "train" or "test", the rows of this one alone; None takes all.

    Returns:
      Pairs; rows without answers give a prompt alone and are not counted as skipped.

    Raises:
      FileNotFoundError: nothing there, or no row of this split.
      ConnectionError: a data set of the hub that is not in the cache, and no network.
      ValueError: a row that cannot be read, or no such column; the message names file and line.
    """
    out = hh_rlhf.Pairs([], [], [])
    for place, row in _rows(path):
        if split in (None, SPLITS.get(str(_given(row))) or place.split):
            _add(out, row, place.source)
    if not out.prompts:
        raise FileNotFoundError(f"{path} has no row{'' if split is None else f' of split {split!r}'}. {HINT}")
    return out


def read_by_split(path: str | os.PathLike) -> dict[str, hh_rlhf.Pairs]:
    """The rows of each split that they give themselves: "train", "test", "validation", or "" for none; arguments as of `read`.

    Raises:
      FileNotFoundError: no row at all.
      ValueError: as `read`; or a row's split is unknown, or another than its file's name says.
    """
    out: dict[str, hh_rlhf.Pairs] = {}
    for place, row in _rows(path):
        _add(out.setdefault(split_of(row, place), hh_rlhf.Pairs([], [], [])), row, place.source)
    if not out:
        raise FileNotFoundError(f"{path} has no row. {HINT}")
    return out


def read_prompts(path: str | os.PathLike) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """(turns, split) of every row in the order of `read_rows`; the split is "" for none. Errors as of `read_by_split`."""
    out = [(read_turns(row, place.source), split_of(row, place)) for place, row in _rows(path)]
    if not out:
        raise FileNotFoundError(f"{path} has no row. {HINT}")
    return out


class Place(NamedTuple):
    """Where a row stands: its file, "file:line", and the split that the file's or the directory's name says, "" for none."""

    file: Path
    source: str
    split: str


def split_of(row: dict[str, Any], place: Place) -> str:
    """The split that a row gives itself, or else its place; "" for none.

    Raises:
      ValueError: an unknown split, or the two contradict each other.
    """
    split = _given(row)
    if split in (None, ""):
        return place.split
    if not isinstance(split, str) or split not in SPLITS:
        raise ValueError(
            f"{place.source} has the split {split!r}, which is none of {', '.join(dict.fromkeys(SPLITS.values()))}."
        )
    given = SPLITS[split]
    if place.split and given != place.split:
        raise ValueError(
            f"{place.source} has the split {split!r}, but the name of {place.file} says {place.split}: leave one of the two "
            "away, or correct it."
        )
    return given


def _given(row: Mapping[str, Any]) -> Any:
    """What stands in a row's field `split`, in whatever case the field is written; texts in lower case and trimmed."""
    for name, value in row.items():
        if name.strip().casefold() == SPLIT_FIELD:
            return value.strip().casefold() if isinstance(value, str) else value
    return None


def _split_of_name(file: Path, in_directory: bool) -> str:
    """The split that the first or the last word of a file's name says, or the whole name of its directory; "" for none.

    The directory counts where it was read as a whole: one file in a checkout called dev is not a validation split.
    """
    words = re.findall("[a-z]+", file.name.casefold().partition(".jsonl")[0].removesuffix(".parquet"))
    meanings = {SPLITS[word] for word in (*words[:1], *words[-1:]) if word in SPLITS}
    if len(meanings) == 1:
        return meanings.pop()
    return SPLITS.get(file.parent.name.casefold(), "") if in_directory else ""


def split_column(path: str | os.PathLike) -> tuple[str, str | None]:
    """(place, column) of `PLACE:COLUMN`; (path, None) where there is no column, or the whole is a path that is there."""
    place, colon, column = str(path).rpartition(":")
    if not colon or not place or "/" in column or Path(path).expanduser().exists():
        return str(path), None
    return place, column


def hub_place(path: str | os.PathLike) -> str | None:
    """OWNER/NAME or OWNER/NAME/CONFIG where `path` names a data set on the hub or a column of one; else None."""
    place, column = split_column(path)
    if column is None and place.startswith(HUB):
        place = column = place.removeprefix(HUB)
    return place if column and hub.parse(place) else None


def _rows(path: str | os.PathLike) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, row) of all that `path` names; rows of a column as a prompt or messages."""
    place, column = split_column(path)
    remote = hub_place(path)
    prepared = None if remote else read_prepared.directory(place)
    for at, row in _of_prepared(prepared, column) if prepared else _of_files(place, remote, column):
        split = files.split_of(at.file) if remote else _given(row)  # train_sft, say, is one of a data set's splits
        if column is not None:
            if (cell := row[column]) in (None, "", []) or (isinstance(cell, str) and not cell.strip()):
                continue
            row = _from_cell(cell, column, at.source)
        yield at, forms.as_own(row | ({"split": split} if split else {}), at.source)


def _of_files(place: str, remote: str | None, column: str | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, row as it stands there) of a file, a directory's or those of a data set on the hub."""
    if not remote:
        _warn_of_unread(Path(place).expanduser())
    in_directory = bool(remote) or Path(place).expanduser().is_dir()
    for file in hub.download(remote) if remote else files.find(place, HINT):
        named = _split_of_name(file, in_directory)
        for source, row in files.rows(file, column):
            yield Place(file, source, named), row


def _of_prepared(directory: Path, column: str | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """(place, row) of a TFDS data set, whose splits' names count as files' do."""
    for split in read_prepared.splits(directory):
        named = _split_of_name(directory / split, in_directory=False)
        for source, row in read_prepared.records(directory, split):
            if column is not None:
                files.need_column(row, column, source)
            yield Place(directory / split, source, named), {name: _as_list(value) for name, value in row.items()}


def _as_list(value: Any) -> Any:
    """A list of objects, where TFDS gives one: as an object of lists."""
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]


@functools.cache  # once per directory
def _warn_of_unread(directory: Path) -> None:
    if directory.is_dir() and (unread := sorted(f.name for f in directory.iterdir() if f.suffix.casefold() in UNREAD)):
        logging.warning("%s: not read are %s. Make them JSON lines, or take them out.", directory, ", ".join(unread))


def _from_cell(cell: Any, column: str, source: str) -> dict[str, Any]:
    """A row of a column's cell.

    Raises:
      ValueError: neither text nor a list of messages.
    """
    if isinstance(cell, str):
        return {"prompt": cell}
    if forms.messages(cell) is None:
        raise ValueError(
            f"{source}: the column {column!r} holds {type(cell).__name__}; prompts are texts, or lists of objects with role "
            "and content. Name another column, or write the prompts as JSON lines."
        )
    return {"messages": cell}


def _add(out: hh_rlhf.Pairs, row: dict[str, Any], source: str) -> None:
    """Adds a row's prompt, and its pair if it has one."""
    turns = read_turns(row, source)
    out.prompts.append(turns)
    if row.get("chosen") is None and row.get("rejected") is None:
        return
    files.need_text(row, ("chosen", "rejected"), source, "a pair needs both, a prompt neither.")
    pair = hh_rlhf.Pair(turns, row["chosen"].strip(), row["rejected"].strip(), source)
    if reason := hh_rlhf.why_no_pair(pair.chosen, pair.rejected):
        out.skipped.append((source, reason))
    else:
        out.pairs.append(pair)


def read_answers(path: str | os.PathLike) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """(turns, answer) of every row that has a `response`, or else a `chosen`; arguments and errors as of `read`."""
    out = []
    for (_, source, _), row in _rows(path):
        name = "response" if row.get("response") is not None else "chosen"
        if row.get(name) is not None:
            files.need_text(row, (name,), source, "an answer is text.")
            out.append((read_turns(row, source), row[name].strip()))
    return out


def read_turns(row: dict[str, Any], source: str, why: str = WHY) -> tuple[tuple[str, str], ...]:
    """The (role, text) turns of a row's prompt or messages.

    Raises:
      ValueError: neither or both are there, or they are not of the form above; the message begins with `source`, and `why`
        says in it what is needed.
    """
    names = [name for name in ("prompt", "messages") if name in row]
    names = [name for name in names if row[name] is not None] or names  # a table has both columns, one of them empty
    if len(names) != 1:
        raise ValueError(f"{source} must have one of prompt and messages; {why}")
    if names == ["prompt"]:
        files.need_text(row, ("prompt",), source, why)
        messages = [{"role": "user", "content": row["prompt"]}]
    else:
        messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"{source} has no list of objects in messages; {why}")
    for i, message in enumerate(messages):
        files.need_text(message, ("role", "content"), f"{source}: messages[{i}]", why)
    turns = tuple((m["role"], m["content"].strip()) for m in messages)
    if [role for role, _ in turns] != (["user", "assistant"] * len(turns))[: len(turns)] or len(turns) % 2 == 0:
        raise ValueError(
            f"{source} has the roles {', '.join(role for role, _ in turns)}; they must be user, assistant, … and end with "
            "user. A system message is the configuration's (config.data.system), the same for every prompt; leave it out."
        )
    if not turns[-1][1]:
        raise ValueError(f"{source} has an empty prompt; {why}")
    return turns
