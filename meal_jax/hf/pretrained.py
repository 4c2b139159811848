"""Weights, settings and tokenizers of Hugging Face directories, in and out, without torch.

A directory holds config.json, one model.safetensors or shards with model.safetensors.index.json, and the tokenizer's
files. `families` has the names of entries and tensors. Weights in torch's own files (pytorch_model.bin) are read if torch is
installed; a GGUF file is read like a directory.

Letters: L layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from meal_jax.hf import gguf, rules, sentencepiece
from meal_jax.hf.families import entries as config_entries
from meal_jax.hf.families import parse
from meal_jax.hf.readers import open_weights
from meal_jax.hf.storage import (  # noqa: F401 - the file names are part of this module too
    FLOATS,
    INDEX,
    PICKLED,
    SINGLE,
    Tensor,
    few,
    read_json,
    weight_files,
    write_files,
)
from meal_jax.hf.tensors import (
    EMBEDDING,
    HEAD,
    check_tensors,
    param_shapes,
    rename,
    torch_shape,
)
from meal_jax.hf.weight_names import Weight, weights
from meal_jax.models.transformer import TransformerConfig

PyTree = Any
PIECES = "tokenizer.model"  # sentencepiece's file
ADAPTER = "adapter_config.json"  # of PEFT
CHUNK = 4096  # rows of a matrix that are compared at a time
SHIPPED = Path(__file__).parents[1] / "shipped"  # models that the package holds, by the names of their folders
FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")  # files that are fetched from the hub


def resolve(source: str | os.PathLike, patterns: Iterable[str] = FILES) -> Path:
    """The directory that `source` names: itself if it exists, else a model of SHIPPED, else the snapshot of that hub id.

    A GGUF file is unpacked to a temporary directory (settings and tokenizer; the weights stay in the file), see `gguf.unpack`.

    Raises:
      FileNotFoundError: it is neither a directory nor a hub id that could be fetched.
      NotADirectoryError: it is a file, but not a GGUF file.
      ModuleNotFoundError, ValueError: see `gguf.unpack`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return gguf.unpack(path.absolute())
    if path.exists():
        raise NotADirectoryError(f"{source} is a file; a Hugging Face directory, a hub id or a .gguf file is needed.")
    if is_shipped(source):
        return SHIPPED / str(source)
    from huggingface_hub import snapshot_download  # imported here because most runs read a directory

    try:
        # The folders of a repository hold copies of its weights in other formats.
        return Path(snapshot_download(str(source), allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's client raises many unrelated types, from bad ids to lost connections
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{source} could not be read either way. As a directory: there is none at {path.absolute()}. "
            f"As a Hugging Face hub id: {type(error).__name__}: {reason} Correct the path, or, for a hub id, check its "
            "spelling, the network and (for a gated model) `hf auth login`, or download it where there is a network "
            "and give the directory."
        ) from error


def is_shipped(source: str | os.PathLike) -> bool:
    """Whether `source` names a model of SHIPPED; a directory of that name goes before it."""
    return str(source).isidentifier() and not Path(source).exists() and (SHIPPED / str(source)).is_dir()


def location(source: str | os.PathLike) -> str:
    """What other programs find a model by, wherever they run: a hub id as it is, the whole path of what is on this machine."""
    if is_shipped(source):
        return str(resolve(source))
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else str(source)


def resolve_weights(source: str | os.PathLike) -> Path:
    """`resolve`, with torch's .bin files of a hub id that has no safetensors."""
    directory = resolve(source)
    if not weight_files(directory) and not Path(source).expanduser().exists():
        directory = resolve(source, [f"{PICKLED}*.bin", f"{PICKLED}*.json"])
    return directory


def load_config(source: str | os.PathLike, **overrides) -> TransformerConfig:
    """Reads config.json of a decoder; `families.FAMILIES` lists the known families.

    Args:
      source: directory, hub id or GGUF file.
      **overrides: fields of TransformerConfig that do not come from a file: dtype, param_dtype, remat, unroll, lora.

    Returns:
      TransformerConfig.

    Raises:
      FileNotFoundError: no config.json, or an adapter beside it.
      ValueError: the file asks for a feature that is not implemented, named in the message; or lacks an entry.
      TypeError: an override that is not a field.
    """
    unknown = set(overrides) - {field.name for field in dataclasses.fields(TransformerConfig)}
    if unknown:
        raise TypeError(f"TransformerConfig has no field {', '.join(sorted(unknown))}.")
    directory = resolve(source)
    path = directory / "config.json"
    if not path.exists() or (directory / ADAPTER).exists():  # transformers puts an adapter on the model beside it
        raise FileNotFoundError(_what_it_is(directory))
    config = dataclasses.replace(parse(read_json(path), path), **overrides)
    if config.tied and _has_own_head(directory, config):
        config = dataclasses.replace(config, tied=False)
    return config


def _what_it_is(directory: Path) -> str:
    """What a directory that is no whole model holds, and what to do."""
    if (directory / ADAPTER).exists():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path")
        what = "which belongs on the model beside it" if (directory / "config.json").exists() else "not a model"
        return (
            f"{directory} holds a PEFT adapter (of {base}), {what}. Merge it into its base and name the result: "
            f"""python -c "from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{directory}')"""
            """.merge_and_unload().save_pretrained('OUT')", then copy the tokenizer's files to OUT."""
        )
    description = f"{directory} has no config.json: it is not a Hugging Face model directory."
    inside = {
        "GGUF files: name one of them": sorted(directory.glob("*.gguf")),
        "models in the folders below: name one of them": sorted(p.parent for p in directory.glob("*/config.json")),
        "weights: fetch config.json from where they are from": [directory / name for name in weight_files(directory)],
    }
    for what, names in inside.items():
        if names:
            return f"{description} It holds {what} ({few([str(path) for path in names], 4)})."
    return f"{description} It holds {few(sorted(p.name for p in directory.iterdir()), 4) or 'nothing'}."


def _has_own_head(directory: Path, config: TransformerConfig) -> bool:
    """Whether a directory of tied weights stores an output that differs from its embedding: transformers then uses it."""
    try:
        with contextlib.ExitStack() as stack:
            tensors = rename(open_weights(directory, stack), config)
            head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
            if head is None or embedding is None or head.get_shape() != embedding.get_shape():
                return False
            size = head.get_shape()[0]
            parts = [slice(i, min(i + CHUNK, size)) for i in range(0, size, CHUNK)]
            return any(not np.array_equal(head[part], embedding[part]) for part in parts)
    except (FileNotFoundError, ModuleNotFoundError, ValueError):  # `load_params` tells
        return False


def load_params(source: str | os.PathLike, config: TransformerConfig, sharding: PyTree | None = None) -> PyTree:
    """Reads the decoder's base parameters, which `Policy.init` without LoRA makes under "transformer".

    Every name and shape is checked against the files' headers before the first value is read. Values are then read tensor
    by tensor (one layer of one parameter), only each device's slice, in the storage type (`config.param_dtype`; float32 for
    the norms). Each is put on the device before the next is read, so the host holds at most one tensor of the file and its
    copy in the storage type.

    Args:
      source: directory, hub id or GGUF file.
      config: as from `load_config`.
      sharding: None for the default device, or a tree like the result with one sharding per leaf.

    Returns:
      {"embedding": [V, D], "final_norm": [D], ["output": [V, D],] "layers": {... [L, ...]}}.

    Raises:
      FileNotFoundError: no weights, or a shard that the index names is missing.
      ModuleNotFoundError: the weights are torch's .bin files and there is no torch.
      ValueError: a damaged file, or tensors missing, misshapen, of a type that is not floating point, or left over.
    """
    shapes = param_shapes(config)
    placement = dict.fromkeys(shapes)
    if sharding is not None:
        placement = traverse_util.flatten_dict(sharding, sep="/")
        if placement.keys() != shapes.keys():
            raise ValueError(f"Parameters and shardings differ in: {', '.join(placement.keys() ^ shapes.keys())}.")
    directory = resolve_weights(source)
    with contextlib.ExitStack() as stack:
        tensors = rename(open_weights(directory, stack), config)
        check_tensors(directory, tensors, config)
        flat = {
            weight.path: read_weight(weight, tensors, shapes[weight.path], config.layers, placement[weight.path])
            for weight in weights(config)
        }
    return traverse_util.unflatten_dict(flat, sep="/")


def check_weights(source: str | os.PathLike, config: TransformerConfig) -> None:
    """Refuses what `load_params` would, from the files' headers: no value is read. Errors as of `load_params`."""
    directory = resolve_weights(source)
    with contextlib.ExitStack() as stack:
        check_tensors(directory, rename(open_weights(directory, stack), config), config)


def read_weight(
    weight: Weight, tensors: Mapping[str, Tensor], leaf: jax.ShapeDtypeStruct, layers: int, sharding
) -> jax.Array:
    """One parameter on its devices; a stacked one is filled layer by layer in place."""
    if "{}" not in weight.name:
        return _read(tensors[weight.name], weight.transposed, leaf.shape, leaf.dtype, sharding)
    one_layer = sharding
    if isinstance(sharding, jax.NamedSharding):
        one_layer = jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[1:]))
    stacked = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
    set_layer = _set_layer(sharding)
    for i, name in enumerate(weight.names(layers)):
        row = _read(tensors[name], weight.transposed, leaf.shape[1:], leaf.dtype, one_layer)
        stacked = jax.block_until_ready(set_layer(stacked, row, i))  # else waiting rows pile up on the host
    return stacked


@functools.cache
def _set_layer(sharding):
    def update(stacked, row, i):
        return jax.lax.dynamic_update_index_in_dim(stacked, row, i, 0)

    return jax.jit(update, donate_argnums=0, out_shardings=sharding)


def _read(tensor: Tensor, transposed: bool, shape: tuple[int, ...], dtype, sharding) -> jax.Array:
    """One tensor on its devices; each slice is read once, also if several devices hold it."""

    def part(index):
        value = tensor[index[::-1] if transposed else index]
        return np.ascontiguousarray(value.T if transposed else value, dtype)

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(shape)))
    parts = {}

    def cached_part(index):
        key = str(index)
        if key not in parts:
            parts[key] = part(index)
        return parts[key]

    return jax.make_array_from_callback(shape, sharding, cached_part)


def save(
    directory: str | os.PathLike,
    config: TransformerConfig,
    params: PyTree,
    *,
    settings: Mapping[str, Any] | None = None,
    files: Iterable[str | os.PathLike] = (),
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory that `load_params`, transformers and others read: the inverse of loading.

    Args:
      directory: created if missing.
      config: of the decoder; tensors are stored in `config.param_dtype`.
      params: as from `load_params`, adapters merged into their kernels.
      settings: more entries of config.json, such as eos_token_id.
      files: copied to the directory, for example the tokenizer's.
      max_shard_bytes: larger weights are split over several files; the host holds one at a time.

    Raises:
      ValueError: parameters missing, misshapen or unknown, or a config that its family cannot express.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = param_shapes(config)
    wrong = sorted(flat.keys() ^ shapes.keys())
    wrong += sorted(path for path in flat.keys() & shapes.keys() if np.shape(flat[path]) != shapes[path].shape)
    if wrong:
        hint = " Merge the adapters into their kernels first." if any("lora_" in path for path in wrong) else ""
        raise ValueError(f"Parameters that are missing, unknown or misshapen: {few(wrong)}.{hint}")
    tensors = {}
    for weight in weights(config):
        shape = torch_shape(weight, shapes[weight.path].shape)
        for i, name in enumerate(weight.names(config.layers)):
            layer = i if "{}" in weight.name else None
            tensors[name] = Tensor(
                shape, "", functools.partial(torch_slice, flat[weight.path], layer, weight.transposed)
            )
    config_entries(config)  # raises before anything is written
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file in map(Path, files):
        shutil.copyfile(file, directory / file.name)
    write(directory, config, tensors, settings, max_shard_bytes)


def torch_slice(leaf: jax.Array, layer: int | None, transposed: bool, index: Any) -> np.ndarray:
    """A layer of a parameter in torch's layout, copied from the device."""
    value = np.asarray(leaf if layer is None else leaf[layer])
    return (value.T if transposed else value)[index]


def write(
    directory: Path,
    config: TransformerConfig,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes config.json, then the weights; the file that names them comes last, so a directory with it is complete.

    Args:
      directory: exists.
      config: of the decoder; tensors are stored in `config.param_dtype`.
      tensors: by Hugging Face name, in torch's layout.
      settings: more entries of config.json.
      max_shard_bytes: see `save`.
    """
    entries = config_entries(config) | dict(settings or {})
    write_files(directory, entries, tensors, dict.fromkeys(tensors, jnp.dtype(config.param_dtype)), max_shard_bytes)


def load_tokenizer(source: str | os.PathLike):
    """The directory's tokenizer, with the rules of its tokenizer.json and a pad token: its own, else its end token.

    What transformers puts in the place of the file's rules is undone, see `rules.restore`.
    Padding is always masked, so any token can be the pad token. If pad and end are the same token, a response's length comes
    from its mask, never from comparing ids with pad.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: it has neither a pad nor an end token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # take seconds to import, and only text needs them

    directory = resolve(source)
    try:
        if (directory / PIECES).exists() and not (directory / "tokenizer.json").exists():
            backend, settings = sentencepiece.read_directory(directory, PIECES)
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(directory))
            rules.restore(tokenizer, directory)
    except Exception as error:  # damaged files raise many unrelated types
        reason = sentencepiece.what_lacks(directory) or error
        raise FileNotFoundError(f"{directory} has no tokenizer that can be read: {reason}") from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # what transformers 5 makes of no files
        raise FileNotFoundError(f"{directory} has no tokenizer that can be read: no file there holds a vocabulary.")
    if isinstance(tokenizer.chat_template, dict) and "default" in tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template["default"]  # of several named ones, here and in exports
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer in {directory} has neither a pad nor an end token; name them in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
