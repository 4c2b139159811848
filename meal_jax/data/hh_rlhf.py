"""Human preference pairs in the schema of Anthropic's hh-rlhf: JSON lines with transcripts `chosen` and `rejected`.

A transcript reads "\\n\\nHuman: …\\n\\nAssistant: …" and so on; the two of a row share everything up to their last
assistant turn, save in a few rows, which give a prompt but no pair.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ASSISTANT = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
SUFFIXES = (".jsonl", ".jsonl.gz")
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


def read(path: str | os.PathLike) -> Pairs:
    """Reads a .jsonl or .jsonl.gz file, or all of a directory's, in the order of their names.

    Raises:
      FileNotFoundError: nothing there, or no such files in the directory.
      ValueError: a row that cannot be read; the message names file and line.
    """
    pairs, prompts, skipped = [], [], []
    for file in files(path):
        for number, line in _lines(file):
            source = f"{file}:{number}"
            row = _parse(line, source)
            turns, chosen = split_transcript(row["chosen"], f"{source}: chosen")
            _, rejected = split_transcript(row["rejected"], f"{source}: rejected")
            prompts.append(turns)
            if row["chosen"].rpartition(ASSISTANT)[0] != row["rejected"].rpartition(ASSISTANT)[0]:
                skipped.append((source, DIVERGED))
            elif not chosen or not rejected:
                skipped.append((source, EMPTY))
            elif chosen == rejected:
                skipped.append((source, SAME))
            else:
                pairs.append(Pair(turns, chosen, rejected, source))
    return Pairs(pairs, prompts, skipped)


def files(path: str | os.PathLike) -> list[Path]:
    """The .jsonl and .jsonl.gz files that `path` names: itself, or those of a directory, sorted.

    Raises:
      FileNotFoundError: there are none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no {path}. Pairs are read from a .jsonl or .jsonl.gz file, or a directory of them; hh-rlhf is "
            "at https://huggingface.co/datasets/Anthropic/hh-rlhf (MIT): put its directories harmless-base and "
            "helpful-base there, or give the path where you have them."
        )
    found = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
    if not found:
        inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"{path} has no .jsonl or .jsonl.gz file (it has {inside}).")
    return found


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


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, blank ones left out."""
    number = 0
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except EOFError:
        raise ValueError(f"{file} ends early, after line {number}: it is cut short. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is not a gzip file, or is damaged after line {number} ({error}).") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text after line {number} ({error.reason}).") from None


def _parse(line: str, source: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON ({error}); each line is one object.") from None
    bad = [name for name in ("chosen", "rejected") if not isinstance(row, dict) or not isinstance(row.get(name), str)]
    if bad:
        raise ValueError(f"{source} has no text in {' and '.join(bad)}; each line needs both transcripts.")
    return row
