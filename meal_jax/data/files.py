"""Rows of data files, each with the place that it came from: JSON lines, plain or gzipped, and parquet.

Every message names the file, and the line (in parquet: the row) where there is one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

JSON_LINES = (".jsonl", ".jsonl.gz")
SUFFIXES = (*JSON_LINES, ".parquet")
SPLIT = re.compile(r"(train|test|valid)")


def find(path: str | os.PathLike, hint: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The data files that `path` names: itself, or those of a directory, sorted by name.

    Args:
      path: a file or a directory.
      hint: where the data comes from, a sentence for the message if nothing is there.
      suffixes: ends of names that are data in a directory.

    Raises:
      FileNotFoundError: there are none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no {path}. {hint}")
    found = sorted(file for file in path.iterdir() if file.name.endswith(tuple(suffixes)))
    if not found:
        inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(f"{path} has no {' or '.join(suffixes)} file (it has {inside}). {hint}")
    return found


def rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every row, in order; blank lines are counted and hold nothing.

    Raises:
      ValueError: not what its name says, damaged, cut short, or a line that is not a JSON object.
    """
    if file.name.endswith(".parquet"):
        yield from _parquet(file)
        return
    for number, line in _lines(file):
        source = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{source} is not valid JSON ({error}); each line is one object.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{source} is a JSON {type(row).__name__}; each line is one object with named fields.")
        yield source, row


def need_text(row: dict[str, Any], names: Sequence[str], source: str, why: str) -> None:
    """Refuses a row in which one of `names` is missing or no string.

    Raises:
      ValueError: names them and ends with `why`.
    """
    bad = [name for name in names if not isinstance(row.get(name), str)]
    if bad:
        has = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{source} has no text in {' and '.join(bad)}; {why} (Fields of this row: {has}.)")


def split_of(file: Path) -> str | None:
    """The split that a file's name, or else its directory's, begins with: train, test, validation; None if neither."""
    for name in (file.name, file.parent.name):
        if found := SPLIT.match(name):
            return {"valid": "validation"}.get(found[1], found[1])
    return None


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def _parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            f"{file} is a parquet file, which pyarrow reads: `pip install pyarrow`, or give the rows as JSON lines."
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a parquet file, or is damaged after row {number} ({error}).") from None
