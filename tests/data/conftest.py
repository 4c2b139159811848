"""Invented data files."""

import gzip
import json

import pytest


@pytest.fixture(scope="session")
def write():
    """(path, rows) → path: JSON lines, gzipped if the name says so; rows that are strings are written as they are."""

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as stream:
            for row in rows:
                stream.write((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n")
        return path

    return write
