"""JSON that a run wrote, read back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of results.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or no object; names the file, and what to do.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring it back from a copy, or train that run anew in another --workdir."
        ) from None
    return value


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """The rows of a metrics.jsonl, by step; several of a step are joined, and damaged lines left out. No file has none."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            rows[row["step"]] = rows.get(row["step"], {}) | row
    return dict(sorted(rows.items()))
