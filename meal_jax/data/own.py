"""Prompts or pairs of one's own, as JSON lines.

    {"prompt": "Which tea?"}
    {"prompt": "Which tea?", "chosen": "Sencha.", "rejected": "No idea."}
    {"messages": [{"role": "user", "content": "Which tea?"}], "chosen": "Sencha.", "rejected": "No idea."}
    {"prompt": "Which tea?", "response": "Sencha."}

`prompt` is one human turn; `messages` a conversation that ends with one. `response` is an answer to learn from in
fine-tuning, which else takes `chosen`. A `split` (train, test or validation) may stand in a row, and rows of files named
train…, test… or validation… have that one: such rows keep their split. The rest is divided by a hash of its first human turn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from meal_jax.data import files, hh_rlhf

HINT = 'It holds JSON lines: {"prompt": …} or {"messages": […]}, and for pairs "chosen" and "rejected".'
SPLITS = {  # a row's `split` to what it means
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "valid": "validation", "validation": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
WHY = 'each line is {"prompt": text} or {"messages": [{"role": …, "content": …}, …]}.'


def read_rows(path: str | os.PathLike, split: str | None = None) -> hh_rlhf.Pairs:
    """Reads a file or all of a directory's in the order of their names.

    Args:
      path: .jsonl, .jsonl.gz or .parquet file, or a directory of them.
      split: "train" or "test", the rows of this one alone; None takes all.

    Returns:
      Pairs; rows without answers give a prompt alone and are not counted as skipped.

    Raises:
      FileNotFoundError: nothing there, or no row of this split.
      ValueError: a row that cannot be read; the message names file and line.
    """
    out = hh_rlhf.Pairs([], [], [])
    for file in files.find(path, HINT):
        for source, row in files.rows(file):
            if split in (None, row.get("split") or files.split_of(file)):
                _add(out, row, source)
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
    for file in files.find(path, HINT):
        for source, row in files.rows(file):
            _add(out.setdefault(split_of(row, file, source), hh_rlhf.Pairs([], [], [])), row, source)
    if not out:
        raise FileNotFoundError(f"{path} has no row. {HINT}")
    return out


def split_of(row: dict[str, Any], file: Path, source: str) -> str:
    """The split that a row gives itself, or else its file's name; "" for none. A directory counts by its whole name.

    Raises:
      ValueError: an unknown split, or the two contradict each other.
    """
    matched = files.SPLIT.match(file.name)
    named = SPLITS[matched[1]] if matched else SPLITS.get(file.parent.name, "")
    split = row.get("split")
    if split in (None, ""):
        return named
    if not isinstance(split, str) or split.strip().casefold() not in SPLITS:
        raise ValueError(
            f"{source} has the split {split!r}, which is none of {', '.join(dict.fromkeys(SPLITS.values()))}."
        )
    given = SPLITS[split.strip().casefold()]
    if named and given != named:
        raise ValueError(
            f"{source} has the split {split!r}, but the name of {file} says {named}: leave one of the two away, or correct it."
        )
    return given


def _add(out: hh_rlhf.Pairs, row: dict[str, Any], source: str) -> None:
    """Adds a row's prompt, and its pair if it has one."""
    turns = _turns(row, source)
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
    for file in files.find(path, HINT):
        for source, row in files.rows(file):
            name = "response" if row.get("response") is not None else "chosen"
            if row.get(name) is not None:
                files.need_text(row, (name,), source, "an answer is text.")
                out.append((_turns(row, source), row[name].strip()))
    return out


def _turns(row: dict[str, Any], source: str) -> tuple[tuple[str, str], ...]:
    if ("prompt" in row) == ("messages" in row):
        raise ValueError(f"{source} must have one of prompt and messages; {WHY}")
    if "prompt" in row:
        files.need_text(row, ("prompt",), source, WHY)
        messages = [{"role": "user", "content": row["prompt"]}]
    else:
        messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"{source} has no list of objects in messages; {WHY}")
    for i, message in enumerate(messages):
        files.need_text(message, ("role", "content"), f"{source}: messages[{i}]", WHY)
    turns = tuple((m["role"], m["content"].strip()) for m in messages)
    if [role for role, _ in turns] != (["user", "assistant"] * len(turns))[: len(turns)] or len(turns) % 2 == 0:
        raise ValueError(
            f"{source} has the roles {', '.join(role for role, _ in turns)}; they must be user, assistant, … and end with "
            "user. A system message is the configuration's, the same for every prompt."
        )
    if not turns[-1][1]:
        raise ValueError(f"{source} has an empty prompt; {WHY}")
    return turns
