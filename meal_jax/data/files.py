"""Rows of data files, each with the place that it came from: JSON lines, plain, gzipped or under zstd, and parquet.

Compression is told by a file's first bytes and not by its name. Every message names the file, and the line (in parquet: the
row) where there is one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*JSON_LINES, ".parquet")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
OTHERS = {  # first bytes of what people also have, what it is, and what makes it readable
    b"\xff\xfe": ("text in UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
    b"\xfe\xff": ("text in UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8."),
    b"PK\x03\x04": ("a zip archive", "Unpack it and give the directory."),
    b"BZh": ("compressed by bzip2", "Decompress it (bunzip2), or compress it by gzip."),
    b"\xfd7zXZ": ("compressed by xz", "Decompress it (unxz), or compress it by gzip."),
    b"\x00\x05\x16\x07": (
        "an AppleDouble file, macOS's notes on another file",
        "Give the file without ._ in its name.",
    ),
}
BOM = b"\xef\xbb\xbf"
SURROGATE = re.compile(r"[\ud800-\udfff]")
ARRAY = "One JSON array becomes lines by: jq -c '.[]'."
SPLIT_FIELD = "split"  # of rows of one's own; read beside a column, in whatever case it is written
TABLES = {  # ends of names of what people also have, and what makes JSON lines of it
    ".csv": "python -c 'import csv, json, sys; [print(json.dumps(r)) for r in csv.DictReader(sys.stdin)]' < IN > OUT.jsonl",
    ".tsv": "python -c 'import csv, json, sys; [print(json.dumps(r)) for r in csv.DictReader(sys.stdin, delimiter=\"\\t\")]' "
    "< IN > OUT.jsonl",
    ".txt": "jq -Rc '{prompt: .}' IN > OUT.jsonl, if a line is a prompt",
}
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
    # Hidden files are not data: macOS leaves ._rows.jsonl beside rows.jsonl.
    visible = [file for file in path.iterdir() if not file.name.startswith(".")]
    matching = sorted(file for file in visible if file.name.casefold().endswith(tuple(suffixes)) and file.is_file())
    if not matching:
        inside = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        if any(file.is_dir() for file in visible):
            inside += "; directories in it are not read: name one of them, or move their files here"
        raise FileNotFoundError(f"{path} has no {' or '.join(suffixes)} file (it has {inside}). {hint}")
    return matching


def rows(file: Path, column: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every row, in order; blank lines are counted and hold nothing.

    Args:
      file: JSON lines or parquet.
      column: the only field that is needed, of which parquet then reads no other; None for all.

    Raises:
      ValueError: not what its name says, damaged, cut short, a line that is not a JSON object, or a row without `column`.
    """
    if file.name.casefold().endswith(".parquet"):
        yield from _parquet(file, column)
        return
    suffix = file.suffix.casefold()
    if suffix in TABLES and (column is None or suffix != ".txt"):  # a .txt with columns can only be JSON lines
        raise ValueError(f"{file} is no JSON lines. Make it some: {TABLES[suffix]}")
    for number, line in _lines(file):
        source = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            hint = ""
            if number == 1 and line.lstrip()[:1] == "[":
                hint = f" {ARRAY}"
            elif number == 1 and line.strip() == "{":
                hint = " An object over several lines becomes one by: jq -c ."
            elif line.rstrip().endswith(("},", ",}")):
                hint = " Take the comma away that ends the object or stands after it."
            raise ValueError(f"{source} is not valid JSON ({error}); each line is one object.{hint}") from None
        if not isinstance(row, dict):
            hint = f" {ARRAY}" if isinstance(row, list) else ""
            raise ValueError(
                f"{source} is a JSON {type(row).__name__}; each line is one object with named fields.{hint}"
            )
        if "\\ud" in line or "\\uD" in line:  # escapes alone can spell half of a pair
            _refuse_halves(row, source)
        if column is not None:
            need_column(row, column, source)
        yield source, row


def need_column(row: dict[str, Any], column: str, source: str) -> None:
    """Refuses a row without the field: ValueError."""
    if column not in row:
        raise ValueError(f"{source} has no column {column!r}; it has {', '.join(row) or 'none'}.")


def need_text(row: dict[str, Any], names: Sequence[str], source: str, why: str) -> None:
    """Refuses a row in which one of `names` is missing or no string.

    Raises:
      ValueError: names them and ends with `why`.
    """
    bad = [name for name in names if not isinstance(row.get(name), str)]
    if bad:
        present = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{source} has no text in {' and '.join(bad)}; {why} (Its fields: {present}.)")


def split_of(file: Path) -> str | None:
    """The split that a file's name, or else its directory's, begins with: train, test, validation; None if neither."""
    for name in (file.name, file.parent.name):
        if matched := SPLIT.match(name.removeprefix("partial-")):  # the hub's mark of a split's first files
            return {"valid": "validation"}.get(matched[1], matched[1])
    return None


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_halves(value: Any, source: str, field: str = "") -> None:
    """Refuses a text that holds half of a surrogate pair, which no tokenizer and no UTF-8 file can hold."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_halves(inner, source, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_halves(inner, source, f"{field}[{i}]")
    elif isinstance(value, str) and (half := SURROGATE.search(value)):
        raise ValueError(
            f"{source}: {field} holds \\u{ord(half[0]):04x}, half of a surrogate pair, at character {half.start()}: no text "
            "can. An emoji was probably cut in two; cut by characters and write the file again."
        )


def _open(file: Path) -> Any:
    """A stream of the file's bytes, decompressed."""
    with open(file, "rb") as stream:
        head = stream.read(6)
    for mark, (what, advice) in OTHERS.items():
        if head.startswith(mark):
            raise ValueError(f"{file} is {what}, not JSON lines. {advice}")
    if head.startswith(ZSTD) or file.suffix == ".zst":
        try:
            import pyarrow
        except ImportError:
            raise ImportError(
                f"{file} is compressed by zstd, which pyarrow reads: `pip install pyarrow`, or decompress it (unzstd)."
            ) from None
        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return (gzip.open if head.startswith(GZIP) or file.suffix == ".gz" else open)(file, "rb")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines, blank ones and marks of byte order left out."""
    number = 0
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, 1):
                line = line.removeprefix(BOM)
                if line.strip():
                    yield number, line.decode()
    except EOFError:
        raise ValueError(f"{file} ends early, after line {number}: it is cut short. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is not a gzip file, or is damaged after line {number} ({error}).") from None
    except UnicodeDecodeError as error:
        position = f"line {number}, byte {error.start}: {error.reason}"
        raise ValueError(f"{file} is not UTF-8 text ({position}). Save it as UTF-8.") from None
    except OSError as error:
        if file.suffix != ".zst":
            raise
        raise ValueError(f"{file} is not a zstd file, or is damaged after line {number} ({error}).") from None


def _parquet(file: Path, column: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
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
            names = opened.schema_arrow.names
            if column is not None and column not in names:
                raise ValueError(f"{file} has no column {column!r}; it has {', '.join(names)}.")
            if column is not None:
                names = [name for name in names if name == column or name.strip().casefold() == SPLIT_FIELD]
            for batch in opened.iter_batches(batch_size=1000, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a parquet file, or is damaged after row {number} ({error}).") from None
