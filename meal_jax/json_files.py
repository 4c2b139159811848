"""JSON that a run wrote, read back: a damaged file or line is named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of results.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or no object; names the file.
    """
    try:
        return _object(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring it back from a copy, or train that run anew in another --workdir."
        ) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, each with its "step"; none where there is no file.

    Raises:
      ValueError: a line is damaged; names file and line.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), 1):
        try:
            rows.append(_object(line))
            if "step" not in rows[-1]:
                raise ValueError("it has no step")
        except ValueError as error:
            raise ValueError(
                f"{path}:{number} is damaged ({error}): delete that line and run the same command again, which resumes from "
                "the last checkpoint."
            ) from None
    return rows


def _object(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    return value
