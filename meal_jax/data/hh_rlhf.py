"""Human preference pairs in the schema of Anthropic's hh-rlhf: transcripts `chosen` and `rejected`.

A transcript reads "\\n\\nHuman: …\\n\\nAssistant: …" and so on. The two of a row share everything up to their last
assistant turn; a few rows do not, and give a prompt but no pair. Rows come from published files or from the output of
`meal_jax.data.prepare`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
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
      turns: ((role, text), …), role "user" or "assistant", up to and including the last human turn.
      chosen: the preferred answer.
      rejected: the other answer.
      source: "file:line".
    """

    turns: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str
    source: str


class Pairs(NamedTuple):
    """The rows of a path.

    Attributes:
      pairs: rows whose two transcripts differ, and only in the last assistant turn.
      prompts: the conversation of every row (from `chosen`), in order, whether or not the row is a pair.
      skipped: (source, reason) of each row left out of `pairs`; reason is one of REASONS.
    """

    pairs: list[Pair]
    prompts: list[tuple[tuple[str, str], ...]]
    skipped: list[tuple[str, str]]

    def count(self, reason: str) -> int:
        """Rows left out for this reason."""
        return sum(why == reason for _, why in self.skipped)


def read_pairs(path: str | os.PathLike, split: str | None = None, *, as_written: bool = False) -> Pairs:
    """Reads a file, a directory's files in the order of their names, or what `prepare` wrote there.

    Args:
      path: .jsonl, .jsonl.gz or .parquet file; a directory of them; a prepared data set.
      split: "train" or "test" reads only the rows of this split; None reads all.
      as_written: see `split_transcript`.

    Raises:
      FileNotFoundError: the path does not exist, or has no such files, or none of this split.
      ValueError: a row that cannot be read; the message names file and line.
    """
    return collect(parse(row, source, as_written=as_written) for source, row in rows(path, split))


def rows(path: str | os.PathLike, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", row as published) of `path`; arguments and errors as of `read_pairs`."""
    if read_prepared.directory(path):
        yield from read_prepared.records(path, split)
        return
    every = files.find(path, HINT)
    chosen_files = [file for file in every if split in (None, files.split_of(file))]
    if not chosen_files:
        raise FileNotFoundError(f"{path} has no {split} split, only {', '.join(file.name for file in every)}. {HINT}")
    for file in chosen_files:
        yield from files.rows(file)


def parse(row: dict[str, Any], source: str, *, as_written: bool = False) -> tuple[Pair, str]:
    """A row as a Pair, and the member of REASONS for which it is left out ("" if it is kept).

    `as_written` is as in `split_transcript`.

    Raises:
      ValueError: not two transcripts.
    """
    files.need_text(row, ("chosen", "rejected"), source, "each line needs both transcripts.")
    turns, chosen = split_transcript(row["chosen"], f"{source}: chosen", as_written=as_written)
    _, rejected = split_transcript(row["rejected"], f"{source}: rejected", as_written=as_written)
    reason = why_no_pair(chosen, rejected)
    if row["chosen"].rpartition(ASSISTANT)[0] != row["rejected"].rpartition(ASSISTANT)[0]:
        reason = DIVERGED
    return Pair(turns, chosen, rejected, source), reason


def why_no_pair(chosen: str, rejected: str) -> str:
    """EMPTY or SAME, or "" if two answers to one conversation can be compared."""
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


def split_transcript(text: str, where: str, *, as_written: bool = False) -> tuple[tuple[tuple[str, str], ...], str]:
    """Splits "\\n\\nHuman: a\\n\\nAssistant: b" into its turns and its last assistant text.

    A few published rows have two turns of one speaker in a row, which chat templates refuse. There they are joined, without
    the second label; an assistant's turn before the last one is joined to the answer. The published code (RiC) gives base
    models the text as it is. `as_written` keeps that text for plain templates: labels and white space within a turn stay,
    and an assistant's turn right before the answer stays in the prompt, as a part of the last human turn.

    Args:
      text: transcript.
      where: its name in messages.
      as_written: see above. Otherwise white space around each turn is stripped.

    Returns:
      ((role, text), …) up to and including the last human turn, and the stripped answer ("" if it is empty).

    Raises:
      ValueError: it has no assistant turn, does not begin with a human turn, or the answer follows no human turn.
    """
    head, separator, answer = text.rpartition(ASSISTANT)
    if not separator:
        raise ValueError(f'{where} has no "\\n\\nAssistant:" turn; a transcript must end with one.')
    before, *rest = TURN.split(head)
    turns = [(ROLES[role], turn) for role, turn in zip(rest[::2], rest[1::2], strict=True)]
    if before.strip() or not turns or turns[0][0] != "user":
        raise ValueError(f'{where} does not begin with "\\n\\nHuman:"; a transcript must.')
    if as_written:
        return _joined_as_written(turns), answer.strip()
    joined = _joined(turns)
    if joined[-1][0] != "user":
        joined, answer = joined[:-1], f"{joined[-1][1]}\n\n{answer.strip()}"
    return joined, answer.strip()


def _joined(turns: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    out: list[tuple[str, str]] = []
    for role, text in turns:
        if out and out[-1][0] == role:
            out[-1] = (role, f"{out[-1][1]}\n\n{text.strip()}".strip())
        else:
            out.append((role, text.strip()))
    return tuple(out)


def _joined_as_written(turns: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    last_human = max(i for i, (role, _) in enumerate(turns) if role == "user")
    out: list[tuple[str, str]] = []
    for i, (role, text) in enumerate(turns):
        if out and (out[-1][0] == role or i > last_human):
            label = next(name for name in ROLES if ROLES[name] == role)
            out[-1] = (out[-1][0], f"{out[-1][1]}\n\n{label}:{text}")
        else:
            out.append((role, text.removeprefix(" ")))  # the space that plain templates put after a label
    return tuple(out)
