"""The tensors of a directory's weight files, read lazily: one reader per suffix."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from meal_jax.hf import gguf
from meal_jax.hf.storage import INDEX, PICKLED, SINGLE, Tensor, read_json, weight_files


def open_weights(directory: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """Name → lazily read tensor of a directory; the stack closes the files."""
    files = weight_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}, nor torch's {PICKLED}.bin.")
    tensors = {}
    for name in files:
        path = directory / name
        tensors |= READERS[path.suffix](path, stack)
    return tensors


def _open_safetensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again.") from error
    return {key: file.get_slice(key) for key in file.keys()}


def _open_pickled(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """The tensors of a torch file, read as data only: no code in it is run."""
    try:
        import torch
    except ModuleNotFoundError:
        name = (read_json(path.parent / "config.json").get("architectures") or ["AutoModelForCausalLM"])[0]
        raise ModuleNotFoundError(
            f"{path} is a torch file, and torch is not installed. Convert the directory where it is: "
            f"""python -c "from transformers import {name} as M; M.from_pretrained('{path.parent}')"""
            """.save_pretrained('OUT')" and copy the tokenizer's files to OUT."""
        ) from None
    try:
        # Only zip files, which torch writes since 1.6, can be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged archives raise many unrelated types
        raise ValueError(f"{path} is damaged, or holds more than tensors ({error}); fetch it again.") from error
    types = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}

    def reader(tensor):
        return lambda index: tensor[index].to(torch.float32).numpy()

    return {
        name: Tensor(tuple(tensor.shape), types.get(tensor.dtype, str(tensor.dtype)), reader(tensor))
        for name, tensor in state.items()
    }


def _open_gguf(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    return gguf.open_tensors(path)


READERS = {".safetensors": _open_safetensors, ".bin": _open_pickled, ".gguf": _open_gguf}
