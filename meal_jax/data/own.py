"""Prompts or pairs of one's own, as JSON lines.

    {"prompt": "Which tea?"}
    {"prompt": "Which tea?", "chosen": "Sencha.", "rejected": "No idea."}
    {"messages": [{"role": "user", "content": "Which tea?"}], "chosen": "Sencha.", "rejected": "No idea."}
    {"prompt": "Which tea?", "response": "Sencha."}

`prompt` is one human turn; `messages` a conversation that ends with one. `response` is an answer to learn from in
fine-tuning, which else takes `chosen`. A `split` ("train" or "test") may stand in a
row; rows of files named train… or test… have that, and the rest is divided by a hash of its first human turn.
"""

from __future__ import annotations

import os
from typing import Any

from meal_jax.data import files, hh_rlhf

HINT = 'It holds JSON lines: {"prompt": …} or {"messages": […]}, and for pairs "chosen" and "rejected".'
WHY = 'each line is {"prompt": text} or {"messages": [{"role": …, "content": …}, …]}.'


def read(path: str | os.PathLike, split: str | None = None) -> hh_rlhf.Pairs:
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
            if split not in (None, row.get("split") or files.split_of(file)):
                continue
            turns = _turns(row, source)
            out.prompts.append(turns)
            if row.get("chosen") is None and row.get("rejected") is None:
                continue
            files.need_text(row, ("chosen", "rejected"), source, "a pair needs both, a prompt neither.")
            pair = hh_rlhf.Pair(turns, row["chosen"].strip(), row["rejected"].strip(), source)
            if reason := hh_rlhf.why_no_pair(pair.chosen, pair.rejected):
                out.skipped.append((source, reason))
            else:
                out.pairs.append(pair)
    if not out.prompts:
        raise FileNotFoundError(f"{path} has no row{'' if split is None else f' of split {split!r}'}. {HINT}")
    return out


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
