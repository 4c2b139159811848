"""Weights, settings and tokenizers of Hugging Face directories, in and out, without torch.

A directory holds config.json, one model.safetensors or shards with model.safetensors.index.json, and the tokenizer's
files. `WEIGHTS` is the one table that pairs our parameters with their tensors: it serves reading and writing.

Letters: L layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from meal_jax.models.transformer import Transformer, TransformerConfig

PyTree = Any
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F16", "BF16", "F32", "F64")


class Weight(NamedTuple):
    """One parameter and its tensor.

    Attributes:
      path: of our parameter; "layers/..." is stacked [L, ...].
      name: of the tensor; "{}" stands for the layer's number.
      transposed: torch keeps a linear layer's matrix [out, in], we keep [in, out].
    """

    path: str
    name: str
    transposed: bool = False

    def names(self, layers: int) -> list[str]:
        """Names of the tensors that make up the parameter: one for each layer, or one."""
        return [self.name.format(i) for i in range(layers)] if "{}" in self.name else [self.name]


WEIGHTS = (
    Weight("embedding", "model.embed_tokens.weight"),
    Weight("layers/attention_norm", "model.layers.{}.input_layernorm.weight"),
    *(
        Weight(f"layers/attention/{ours}/kernel", f"model.layers.{{}}.self_attn.{theirs}.weight", True)
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "o_proj"))
    ),
    Weight("layers/mlp_norm", "model.layers.{}.post_attention_layernorm.weight"),
    *(
        Weight(f"layers/mlp/{ours}/kernel", f"model.layers.{{}}.mlp.{theirs}.weight", True)
        for ours, theirs in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj"))
    ),
    Weight("final_norm", "model.norm.weight"),
    Weight("output", "lm_head.weight"),
)


def resolve(source: str | os.PathLike) -> Path:
    """The directory that `source` names: itself where it exists, else the local snapshot of that hub id.

    Raises:
      FileNotFoundError: it is neither a directory nor a hub id that could be fetched.
      NotADirectoryError: it is a file.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        hint = " A GGUF file is converted by python -m meal_jax.models.gguf." if directory.suffix == ".gguf" else ""
        raise NotADirectoryError(f"{source} is a file; a Hugging Face directory or a hub id is needed.{hint}")
    from huggingface_hub import snapshot_download  # only here: most runs read a directory

    try:
        return Path(
            snapshot_download(
                str(source),
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"],
                ignore_patterns=["*/*"],  # copies of the weights in other formats
            )
        )
    except Exception as error:  # the hub's client raises many unrelated types, from bad ids to lost connections
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{source} could not be read either way. As a directory: there is none at {directory.absolute()}. "
            f"As a Hugging Face hub id: {type(error).__name__}: {reason} Correct the path, or, for a hub id, check its "
            "spelling, the network and (for a gated model) `hf auth login`, or download it where there is a network "
            "and give the directory."
        ) from error


def load_config(source: str | os.PathLike, **overrides) -> TransformerConfig:
    """Reads config.json of a Llama-family model.

    Args:
      source: directory or hub id.
      **overrides: fields of TransformerConfig that no file decides: dtype, param_dtype, remat, unroll, lora.

    Returns:
      TransformerConfig.

    Raises:
      FileNotFoundError: no config.json.
      ValueError: the file asks for something that is not implemented, named in the message; or lacks an entry.
      TypeError: an override that is not a field.
    """
    path = resolve(source) / "config.json"
    c = _read_json(path)
    unknown = set(overrides) - {field.name for field in dataclasses.fields(TransformerConfig)}
    if unknown:
        raise TypeError(f"TransformerConfig has no field {', '.join(sorted(unknown))}.")
    _refuse_unimplemented(path, c)
    try:
        fields = {
            "vocab_size": c["vocab_size"],
            "width": c["hidden_size"],
            "layers": c["num_hidden_layers"],
            "heads": c["num_attention_heads"],
            "kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
            "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            "hidden": c["intermediate_size"],
            "rope_base": float(_rope(c).get("rope_theta", c.get("rope_theta", 10_000.0))),
            "norm_eps": float(c.get("rms_norm_eps", 1e-6)),  # the defaults of Hugging Face's LlamaConfig
            "tied": bool(c.get("tie_word_embeddings", False)),
        }
    except KeyError as error:
        raise ValueError(f"{path} has no entry {error}: it does not describe a Llama-family model.") from None
    return TransformerConfig(**(fields | overrides))


def _rope(c: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings of config.json under their new name or their old one."""
    return c.get("rope_parameters") or c.get("rope_scaling") or {}


def _refuse_unimplemented(path: Path, c: Mapping[str, Any]) -> None:
    """Raises ValueError naming every setting of config.json that the decoder would silently get wrong."""
    rope = _rope(c)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    architectures = c.get("architectures") or [f"model_type {c.get('model_type')}"]
    bad = []
    if architectures != ["LlamaForCausalLM"]:
        bad.append(f"architecture {', '.join(architectures)} (LlamaForCausalLM is)")
    if rope_type != "default":
        bad.append(f"rotary scaling of type {rope_type}")
    if rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0)) != 1.0:
        bad.append("partial_rotary_factor other than 1")
    if c.get("hidden_act", "silu") != "silu":
        bad.append(f"hidden_act {c['hidden_act']} (silu is)")
    bad += [name for name in ("attention_bias", "mlp_bias", "rope_interleaved", "quantization_config") if c.get(name)]
    if bad:
        raise ValueError(f"{path} asks for what is not implemented: {'; '.join(bad)}. Use another model.")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a Hugging Face model directory.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again.") from None


@functools.cache
def param_shapes(config: TransformerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path "a/b/c" to shape and type of every base parameter of the decoder, adapters left out."""
    c = dataclasses.replace(config, lora=None)
    tokens = jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)

    def init(tokens):
        call = lambda module, tokens: module(module.embed(tokens), tokens, jnp.ones((1, 1, 1, 1), bool))  # noqa: E731
        return Transformer(c).init(jax.random.key(0), tokens, method=call)["params"]

    return traverse_util.flatten_dict(jax.eval_shape(init, tokens), sep="/")


def load_params(source: str | os.PathLike, config: TransformerConfig, sharding: PyTree | None = None) -> PyTree:
    """Reads the decoder's base parameters, what `Policy.init` without LoRA makes under "transformer".

    Every name and shape is checked against the files' headers before the first value is read. Values are then read
    tensor by tensor into one stacked host buffer at a time and put on the device in the parameters' type
    (`config.param_dtype`; float32 for the norms).

    Args:
      source: directory or hub id.
      config: as from `load_config`.
      sharding: None for the default device, or a tree like the result with a sharding for each leaf.

    Returns:
      {"embedding": [V, D], "final_norm": [D], ["output": [V, D],] "layers": {... [L, ...]}}.

    Raises:
      FileNotFoundError: no safetensors, or a shard that the index names is missing.
      ValueError: a damaged file, or tensors missing, misshapen, of a type that is not floating point, or left over.
    """
    directory = resolve(source)
    shapes = param_shapes(config)
    placement = dict.fromkeys(shapes)
    if sharding is not None:
        placement = traverse_util.flatten_dict(sharding, sep="/")
        if placement.keys() != shapes.keys():
            raise ValueError(f"Parameters and shardings differ in: {', '.join(placement.keys() ^ shapes.keys())}.")
    with contextlib.ExitStack() as stack:
        tensors = _open(directory, stack)
        _check(directory, tensors, config)
        flat = {}
        for weight in WEIGHTS:
            if weight.path in shapes:
                flat[weight.path] = jax.device_put(
                    _read(weight, tensors, shapes[weight.path], config.layers), placement[weight.path]
                )
    return traverse_util.unflatten_dict(flat, sep="/")


def _open(directory: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Name of each tensor in the directory's safetensors to its lazily read slice."""
    if (directory / SINGLE).exists():
        files = [SINGLE]
    elif (directory / INDEX).exists():
        files = sorted(set(_read_json(directory / INDEX).get("weight_map", {}).values()))
        absent = [name for name in files if not (directory / name).exists()]
        if absent:
            raise FileNotFoundError(
                f"{directory / INDEX} names files that are missing; fetch them: {', '.join(absent)}"
            )
    else:
        other = sorted(path.name for path in directory.glob("*.bin"))
        why = f" It has {', '.join(other)}: save the model again with safetensors." if other else ""
        raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}.{why}")
    tensors = {}
    for name in files:
        try:
            file = stack.enter_context(safe_open(directory / name, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"{directory / name} is cut short or damaged ({error}); fetch it again.") from error
        tensors |= {key: file.get_slice(key) for key in file.keys()}
    return tensors


def _check(directory: Path, tensors: Mapping[str, Any], config: TransformerConfig) -> None:
    """Raises ValueError naming every tensor that is missing, misshapen, of a wrong type or left over."""
    shapes = param_shapes(config)
    expected = {}
    for weight in WEIGHTS:
        if weight.path in shapes:
            shape = _tensor_shape(weight, shapes[weight.path].shape)
            expected |= dict.fromkeys(weight.names(config.layers), shape)
    found = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "misshapen": [
            f"{name} {list(found[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
        "not floating point": sorted(
            f"{name} ({tensor.get_dtype()})"
            for name, tensor in tensors.items()
            if name in expected and tensor.get_dtype() not in FLOATS
        ),
        "left over": sorted(name for name in found.keys() - expected.keys() if not _is_redundant(name, config)),
    }
    lines = [f"  {what}: {_few(names)}" for what, names in problems.items() if names]
    if lines:
        raise ValueError(f"The tensors in {directory} are not those of its config.json:\n" + "\n".join(lines))


def _is_redundant(name: str, config: TransformerConfig) -> bool:
    """Tensors that some writers add and that follow from others: the tied output, the rotary frequencies."""
    return (config.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")


def _few(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _tensor_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor behind a parameter of a shape: without L, and reversed if it is transposed."""
    shape = shape[1:] if "{}" in weight.name else shape
    return shape[::-1] if weight.transposed else shape


def _read(weight: Weight, tensors: Mapping[str, Any], leaf: jax.ShapeDtypeStruct, layers: int) -> np.ndarray:
    """One parameter, its layers stacked, in a host buffer of the parameter's shape and type."""
    buffer = np.empty(leaf.shape, leaf.dtype)
    rows = buffer if "{}" in weight.name else buffer[None]
    for row, name in zip(rows, weight.names(layers), strict=True):
        value = tensors[name][:]
        row[...] = value.T if weight.transposed else value
    return buffer


def save(
    directory: str | os.PathLike,
    config: TransformerConfig,
    params: PyTree,
    *,
    settings: Mapping[str, Any] | None = None,
    files: Iterable[str | os.PathLike] = (),
) -> None:
    """Writes a directory that `load_params`, transformers and others read: the inverse of loading.

    Args:
      directory: made if it is not there.
      config: of the decoder; tensors are stored in `config.param_dtype`.
      params: as from `load_params`, adapters merged into their kernels.
      settings: more entries of config.json, such as eos_token_id.
      files: copied along, the tokenizer's for one.

    Raises:
      ValueError: parameters missing, misshapen or unknown.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = param_shapes(config)
    wrong = sorted(flat.keys() ^ shapes.keys())
    wrong += sorted(path for path in flat.keys() & shapes.keys() if np.shape(flat[path]) != shapes[path].shape)
    if wrong:
        hint = " Merge the adapters into their kernels first." if any("lora_" in path for path in wrong) else ""
        raise ValueError(f"Parameters that are missing, unknown or misshapen: {_few(wrong)}.{hint}")
    tensors = {}
    for weight in WEIGHTS:
        if weight.path in shapes:
            value = np.asarray(flat[weight.path]).astype(jnp.dtype(config.param_dtype))
            rows = value if "{}" in weight.name else value[None]
            for row, name in zip(rows, weight.names(config.layers), strict=True):
                tensors[name] = row.T if weight.transposed else row
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file in map(Path, files):
        shutil.copyfile(file, directory / file.name)
    write(directory, config, tensors, settings)


def write(
    directory: Path,
    config: TransformerConfig,
    tensors: Mapping[str, np.ndarray],
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, then model.safetensors whole or not at all, so that its presence means completeness.

    Args:
      directory: exists.
      config: of the decoder.
      tensors: by Hugging Face name, in torch's layout.
      settings: more entries of config.json.
    """
    entries = config_entries(config) | dict(settings or {})
    (directory / "config.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    partial = directory / f"{SINGLE}.partial"
    # The writer takes an array's memory as it lies, so a transposed view would be stored wrong.
    dense = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(dense, partial, metadata={"format": "pt"})  # transformers refuses files without this mark
    shutil.copymode(directory / "config.json", partial)  # the writer makes it readable for its owner alone
    os.replace(partial, directory / SINGLE)


def config_entries(config: TransformerConfig) -> dict[str, Any]:
    """What config.json says of a decoder: the inverse of `load_config`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,  # transformers 4 and most servers
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},  # transformers 5
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.param_dtype,
    }


def load_tokenizer(source: str | os.PathLike):
    """The directory's tokenizer, with a pad token: its own, else its end token.

    Padding is masked wherever it is read, so any token will do; where pad and end are one token, a response's length
    comes from its mask and never from comparing ids with pad.

    Raises:
      FileNotFoundError: no tokenizer there.
      ValueError: it has neither a pad nor an end token.
    """
    from transformers import AutoTokenizer  # seconds to import, and only texts need it

    directory = resolve(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{directory} has no tokenizer that can be read: {error}") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"The tokenizer in {directory} has neither a pad nor an end token; name them in tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
