"""Features of a frozen decoder, kept in a file between fits: written whole or not at all, and made again if damaged."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
ZIP = b"PK"  # how an .npz begins, also one that was cut short


def cache_key(rows: Sequence[Any], base: Mapping[str, np.ndarray], max_new: int) -> str:
    """Names the features: equal for equal rows (with `prompt` and `responses`), base and cut."""
    digest = hashlib.sha256(json.dumps([max_new, [(r.prompt, r.responses) for r in rows]]).encode())
    for name in sorted(base):
        digest.update(base[name].tobytes())
    return digest.hexdigest()


def read_cache(path: str, key: str) -> tuple[np.ndarray | None, float]:
    """Features kept by an earlier fit of the same rows, base and cut, or None; and the seconds that they took.

    Raises:
      ValueError: the file is no cache, and would be overwritten.
    """
    if not path or not Path(path).is_file():
        return None, 0.0
    try:
        with np.load(path) as file:
            return (file["x"], float(file["seconds"])) if str(file["key"]) == key else (None, 0.0)
    except DAMAGE as error:
        with open(path, "rb") as file:
            start = file.read(len(ZIP))
        if start not in (b"", ZIP):
            raise ValueError(
                f"config.cache={path} is not a file of kept features (.npz), and would be overwritten: name another."
            ) from error
        logging.warning("config.cache=%s is damaged (%s): the features are computed again.", path, error)
        return None, 0.0


def write_cache(path: str, key: str, x: np.ndarray, seconds: float) -> None:
    """Writes the file under another name first: a process killed here leaves the earlier one."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:  # by a file, since NumPy appends .npz to a name
            np.savez(file, key=key, x=x, seconds=seconds)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
