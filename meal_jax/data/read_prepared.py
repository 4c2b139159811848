"""Reads the output of `meal_jax.data.prepare`: TFDS data sets of array_record shards, without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 1024  # records fetched at a time


def directory(path: str | os.PathLike) -> Path | None:
    """The directory of the prepared data set that `path` names: itself or its newest version; None if there is none."""
    path = Path(path).expanduser()
    versions = sorted(path.glob("*.*.*/dataset_info.json"), key=lambda file: _version(file.parent.name))
    for file in (path / "dataset_info.json", *reversed(versions)):
        if file.is_file():
            return file.parent
    return None


def splits(path: str | os.PathLike) -> dict[str, int]:
    """Name and number of rows of each split of a prepared data set."""
    return {name: split.num_examples for name, split in _builder(path).info.splits.items()}


def records(path: str | os.PathLike, split: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """("directory/split:number", record with texts as str) of every row, numbers from 1; all splits where `split` is None.

    Raises:
      FileNotFoundError: no such split.
      ValueError: the files are damaged.
    """
    builder = _builder(path)
    names = sorted(builder.info.splits)
    if split is not None and split not in names:
        raise FileNotFoundError(f"{builder.data_dir} has no {split} split, only {', '.join(names)}.")
    for name in names if split is None else [split]:
        try:
            source = builder.as_data_source(split=name)
            for start in range(0, len(source), CHUNK):
                stop = min(start + CHUNK, len(source))
                for number, record in enumerate(source.__getitems__(list(range(start, stop))), start + 1):
                    yield f"{builder.data_dir}/{name}:{number}", {key: _plain(value) for key, value in record.items()}
        # array_record raises RuntimeError, IndexError
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{builder.data_dir} is damaged ({error}). Run `python -m meal_jax.data.prepare` again: it writes again what "
                "does not match its checksums."
            ) from error


def _builder(path):
    import tensorflow_datasets as tfds  # takes a second to import, and only prepared data needs it

    prepared = directory(path)
    if prepared is None:
        raise FileNotFoundError(f"{path} is not a prepared data set: it has no dataset_info.json.")
    return tfds.builder_from_directory(prepared)


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else int(value)


def _version(name: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]
