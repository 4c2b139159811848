"""The files of a Hugging Face directory: which hold the weights, and writing weights, completely or not at all.

Weights are in safetensors (one file, or shards and an index), in torch's own files (.bin), or in a GGUF file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = "pytorch_model"  # torch's own files, .bin
GGUF = "model.gguf"  # in the directory of an unpacked GGUF file, a link to it
FLOATS = ("F16", "BF16", "F32", "F64")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is read on indexing, `tensor[part]`, like a slice of safetensors.

    Attributes:
      shape: its dimensions.
      dtype: as safetensors names it, such as "BF16".
      read: index → that part as an array in memory.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Any], np.ndarray]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(index)


def write_json(path: Path, value: Any) -> None:
    """Writes a settings file as Hugging Face's programs do, with characters as they are."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The entries of a JSON file of a model directory.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: it is damaged, or not an object.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a Hugging Face model directory.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds no table of entries; fetch it again.")
    return entries


def weight_files(directory: Path) -> list[str]:
    """Names of the files that hold the weights, [] if there are none; safetensors are preferred to torch's files.

    Raises:
      FileNotFoundError: an index names files that are missing.
      ValueError: an index that is damaged.
    """
    for whole in (SINGLE, f"{PICKLED}.bin", GGUF):
        index = directory / f"{whole}.index.json"
        if (directory / whole).exists():
            return [whole]
        if index.exists():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            absent = [name for name in names if not (directory / name).exists()]
            if absent or not names:
                raise FileNotFoundError(
                    f"{index} names files that are missing; fetch them: {', '.join(absent) or 'all (it names none)'}"
                )
            return names
    return []


def dense(array: Any, dtype: Any = None) -> np.ndarray:
    """An array in C's order: safetensors' writer takes memory as it lies, and so would store a transposed view wrongly."""
    return np.asarray(array, dtype, order="C")


def write_files(
    directory: Path,
    entries: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, np.dtype],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a model of any kind: the entries of config.json, and tensors in the given storage types."""
    (directory / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    size = {name: math.prod(tensor.get_shape()) * dtypes[name].itemsize for name, tensor in tensors.items()}
    shards = [[]]
    for name in tensors:
        if shards[-1] and sum(size[other] for other in shards[-1]) + size[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    stem, count = SINGLE.removesuffix(".safetensors"), len(shards)
    files = [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] if count > 1 else [SINGLE]
    for file, names in zip(files, shards, strict=True):
        held = {name: dense(tensors[name][...], dtypes[name]) for name in names}
        partial = directory / f"{file}.partial"
        save_file(held, partial, metadata={"format": "pt"})  # transformers refuses files without this mark
        shutil.copymode(directory / "config.json", partial)  # the writer makes it readable for its owner only
        os.replace(partial, directory / file)
    if count > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_index(directory, places, sum(size.values()))
    for old in {SINGLE, INDEX, *(path.name for path in directory.glob(f"{stem}-*-of-*.safetensors"))} - set(files):
        if old != INDEX or count == 1:
            (directory / old).unlink(missing_ok=True)  # from an earlier save into this directory


def write_index(directory: Path, places: Mapping[str, str], size: int) -> None:
    """Writes INDEX: each tensor's file, and the bytes of all tensors."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(places)}
    (directory / f"{INDEX}.partial").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(directory / f"{INDEX}.partial", directory / INDEX)


def few(names: list[str], limit: int = 8) -> str:
    """The first `limit` names of a list and the number of the others, for messages."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
