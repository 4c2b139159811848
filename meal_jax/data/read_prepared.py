"""Reads TFDS data sets of array_record shards without TensorFlow: those of `meal_jax.data.prepare`, and of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
      ValueError: the files are damaged or of another kind, or a text is not UTF-8.
    """
    builder = _builder(path)
    names = sorted(builder.info.splits)
    if split is not None and split not in names:
        raise FileNotFoundError(f"{builder.data_dir} has no {split} split, only {', '.join(names)}.")
    for name in names if split is None else [split]:
        try:
            source = builder.as_data_source(split=name)
        except NotImplementedError:
            raise ValueError(
                f"{builder.data_dir} is stored as {builder.info.file_format.value}, which TFDS reads with TensorFlow alone: "
                "write it with file_format='array_record'."
            ) from None
        except Exception as error:
            raise _damaged(builder.data_dir, error) from error
        for start in range(0, len(source), CHUNK):
            try:
                chunk = source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))
            except Exception as error:  # array_record raises RuntimeError, IndexError
                raise _damaged(builder.data_dir, error) from error
            for number, record in enumerate(chunk, start + 1):
                place = f"{builder.data_dir}/{name}:{number}"
                yield place, {key: _plain(value, f"{place}: {key}") for key, value in record.items()}


def _builder(path):
    import tensorflow_datasets as tfds  # takes a second to import, and only prepared data needs it

    prepared = directory(path)
    if prepared is None:
        raise FileNotFoundError(f"{path} is not a prepared data set: it has no dataset_info.json.")
    if not (prepared / "features.json").exists():
        raise ValueError(
            f"{prepared} has a dataset_info.json and no features.json, so it is no data set of TFDS. What Hugging Face's "
            "datasets saved is read as parquet: write it by Dataset.to_parquet."
        )
    try:
        return tfds.builder_from_directory(prepared)
    except Exception as error:  # protobuf's own among them
        raise _damaged(prepared, error) from error


def _damaged(directory: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{directory} is damaged ({error}). Run `python -m meal_jax.data.prepare` again: it writes again what does not match "
        "its checksums."
    )


def _plain(value: Any, place: str) -> Any:
    """A text or a number of Python, and lists and objects of these; other values, such as arrays of numbers, as they are."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{place} is not UTF-8 text (byte {error.start}: {error.reason}).") from None
    if isinstance(value, dict):
        return {name: _plain(part, f"{place}.{name}") for name, part in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):  # of texts
        return [_plain(part, place) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _version(name: str) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]
