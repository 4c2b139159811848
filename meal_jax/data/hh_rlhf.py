"""Human preference pairs in the schema of Anthropic's hh-rlhf: transcripts `chosen` and `rejected`.

A transcript reads "\\n\\nHuman: …\\n\\nAssistant: …" and so on; the two of a row share everything up to their last
assistant turn, save in a few rows, which give a prompt but no pair. Rows come from published files or from what
`meal_jax.data.prepare` wrote.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from meal_jax.data import files, read_prepared

SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
HINT = (
    "hh-rlhf is at https://huggingface.co/datasets/Anthropic/hh-rlhf (MIT), a directory of .jsonl.gz files for each of "
    f"{', '.join(SUBSETS)}: fetch it with `python -m meal_jax.data.prepare --dataset=hh_rlhf`, or give the path where "
    "you have it."
)
ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
DIVERGED, EMPTY, SAME = REASONS = ("differ before the last turn", "an empty answer", "the same answer twice")


class Pair(NamedTuple):
    """Two answers to one conversation.

    Attributes:
      turns: ((role, text), …), role "user" or "assistant", up to and with the last human turn.
      chosen: the answer that people preferred.
      rejected: the other one.
      source: "file:line".
    """

    turns: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str
    source: str


class Pairs(NamedTuple):
    """What a path holds.

    Attributes:
      pairs: rows whose two transcripts differ in the last assistant turn alone, and do differ.
      prompts: the conversation of every row (from `chosen`), in order, pair or not.
      skipped: (source, reason) of each row left out of `pairs`; reason is one of REASONS.
    """

    pairs: list[Pair]
    prompts: list[tuple[tuple[str, str], ...]]
    skipped: list[tuple[str, str]]

    def count(self, reason: str) -> int:
        """Rows left out for this reason."""
        return sum(why == reason for _, why in self.skipped)


def read_pairs(path: str | os.PathLike, split: str | None = None) -> Pairs:
    """Reads a file, all of a directory's in the order of their names, or what `prepare` wrote there.

    Args:
      path: .jsonl, .jsonl.gz or .parquet file; a directory of them; a prepared data set.
      split: "train" or "test", the rows of this one alone; None takes all.

    Raises:
      FileNotFoundError: nothing there, or no such files in the directory, or none of this split.
      ValueError: a row that cannot be read; the message names file and line.
    """
    return collect(parse(row, source) for source, row in rows(path, split))


def rows(path: str | os.PathLike, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", row as published) of `path`; arguments and errors as of `read_pairs`."""
    if read_prepared.directory(path):
        yield from read_prepared.records(path, split)
        return
    found = files.find(path, HINT)
    wanted = [file for file in found if split in (None, files.split_of(file))]
    if not wanted:
        raise FileNotFoundError(f"{path} has no {split} split, only {', '.join(file.name for file in found)}. {HINT}")
    for file in wanted:
        yield from files.rows(file)


def parse(row: dict[str, Any], source: str) -> tuple[Pair, str]:
    """A row as a Pair, and the member of REASONS for which it is none ("" if it is one).

    Raises:
      ValueError: not two transcripts.
    """
    files.need_text(row, ("chosen", "rejected"), source, "each line needs both transcripts.")
    turns, chosen = split_transcript(row["chosen"], f"{source}: chosen")
    _, rejected = split_transcript(row["rejected"], f"{source}: rejected")
    reason = why_no_pair(chosen, rejected)
    if row["chosen"].rpartition(ASSISTANT)[0] != row["rejected"].rpartition(ASSISTANT)[0]:
        reason = DIVERGED
    return Pair(turns, chosen, rejected, source), reason


def why_no_pair(chosen: str, rejected: str) -> str:
    """EMPTY or SAME, or "" where two answers to one conversation can be compared."""
    if not chosen or not rejected:
        return EMPTY
    return SAME if chosen == rejected else ""


def collect(parsed: Iterator[tuple[Pair, str]]) -> Pairs:
    """Sorts parsed rows into pairs and the rest."""
    out = Pairs([], [], [])
    for pair, reason in parsed:
        out.prompts.append(pair.turns)
        if reason:
            out.skipped.append((pair.source, reason))
        else:
            out.pairs.append(pair)
    return out


def split_transcript(text: str, where: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Splits "\\n\\nHuman: a\\n\\nAssistant: b" into its turns and its last assistant text; whitespace is stripped.

    Args:
      text: transcript.
      where: what to call it in a message.

    Returns:
      ((role, text), …) up to and with the last human turn, and the answer ("" where it is empty).

    Raises:
      ValueError: it has no assistant turn, does not begin with a human turn, or the answer follows no human turn.
    """
    head, found, answer = text.rpartition(ASSISTANT)
    if not found:
        raise ValueError(f'{where} has no "\\n\\nAssistant:" turn; a transcript must end with one.')
    before, *rest = TURN.split(head)
    turns = tuple((ROLES[role], said.strip()) for role, said in zip(rest[::2], rest[1::2], strict=True))
    if before.strip() or not turns or turns[0][0] != "user":
        raise ValueError(f'{where} does not begin with "\\n\\nHuman:"; a transcript must.')
    # A few published rows have two turns of one speaker in a row; joined, they are one turn of a chat.
    turns = _join(turns)
    if turns[-1][0] != "user":
        turns, answer = turns[:-1], f"{turns[-1][1]}\n\n{answer.strip()}"
    return turns, answer.strip()


def _join(turns: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    out: list[tuple[str, str]] = []
    for role, said in turns:
        if out and out[-1][0] == role:
            out[-1] = (role, f"{out[-1][1]}\n\n{said}".strip())
        else:
            out.append((role, said))
    return tuple(out)
