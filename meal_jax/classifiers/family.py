"""The parts of a family of classifiers, and reading and writing its tensors.

A family's table of names (`Family.weights`, rows as in hf/families.py) serves reading and writing. This module also handles
differences between old and new files: base models leave out the prefix of their names, BERT's first files call a norm's
parameters gamma and beta, and files may hold buffers and the heads of other tasks.

Letters: L layers.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from meal_jax.hf import pretrained
from meal_jax.hf.weight_names import Weight

# Tensors that classifiers do not read: buffers that follow from the configuration, and heads of other tasks.
REDUNDANT = re.compile(
    r"(\.attn\.(bias|masked_bias)|(^|\.)position_ids|(encoder|decoder)\.version|\.rotary_emb\.inv_freq|final_logits_bias)$"
    r"|^(lm_head|cls|vocab_\w+|qa_outputs|mask_predictions|lm_predictions)\."
)


SETTINGS = ("dtype", "param_dtype", "remat", "lora")  # fields of a configuration that do not come from a file


class Family(NamedTuple):
    """One architecture.

    Attributes:
      name: config.json's model_type.
      stem: its torch classes are `stem` + "ForSequenceClassification", "Model" and so on.
      prefix: of the names of the base model's tensors; files of a base model leave it out.
      config: makes a configuration of `fields`, family, labels and SETTINGS.
      model: module of a config; (tokens [R, T], mask [R, T], types [R, T]) → logits [R, labels] float32.
      weights: the table of names for a config; rows whose parameter the config lacks are ignored.
      fields: config.json's entries → fields of `config`; KeyError if an entry is missing.
      unimplemented: config.json's entries → the features that they ask for and that are not implemented, in words.
      entries: config → config.json's entries, the inverse of `fields`.
      copies: names of tensors that repeat a tied one: {copy: original}.
      redundant: pattern of further names to ignore.
    """

    name: str
    stem: str
    prefix: str
    config: Callable[..., Any]
    model: Callable[[Any], nn.Module]
    weights: Callable[[Any], tuple[Weight, ...]]
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    unimplemented: Callable[[Mapping[str, Any]], list[str]]
    entries: Callable[[Any], dict[str, Any]]
    copies: Mapping[str, str] = {}
    redundant: str = r"(?!)"  # matches nothing


def token_id(c: Mapping[str, Any], name: str, default: int) -> int:
    """A token's id from config.json, whose entry may be absent, null or a list."""
    value = c.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) else default


def norm_weights(path: str, name: str) -> tuple[Weight, ...]:
    """Rows of a layer norm."""
    return Weight(f"{path}/scale", f"{name}.weight"), Weight(f"{path}/bias", f"{name}.bias")


def linear_weights(path: str, name: str) -> tuple[Weight, ...]:
    """Rows of a linear layer of torch, whose matrix is [out, in]."""
    return Weight(f"{path}/kernel", f"{name}.weight", True), Weight(f"{path}/bias", f"{name}.bias")


def _layers(weight: Weight, shapes: Mapping[str, Any]) -> int:
    """L of a stacked parameter; the encoder's and the decoder's of BART differ."""
    return shapes[weight.path].shape[0]


def expected(
    weights: Iterable[Weight], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name of every tensor of a model → (path of its parameter, its shape in torch's layout)."""
    out = {}
    for weight in weights:
        shape = pretrained.torch_shape(weight, shapes[weight.path].shape)
        out |= dict.fromkeys(weight.names(_layers(weight, shapes)), (weight.path, shape))
    return out


def canonical(family: Family, name: str, known: Mapping[str, Any]) -> str:
    """The name in the family's table of a tensor that a file may call differently; unknown names are returned unchanged."""
    new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
    for candidate in (new, family.prefix + new):
        candidate = family.copies.get(candidate, candidate)
        if candidate in known:
            return candidate
    return name


def read_params(
    directory: Path,
    family: Family,
    config: Any,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    placement: Mapping[str, jax.sharding.Sharding | None],
    *,
    fresh: bool = False,
) -> dict[str, jax.Array]:
    """Reads a model's parameters from a directory, after checking every name and shape against the files' headers.

    Args:
      directory: with weights in a format that `pretrained.load_params` reads.
      family: its table of names is used.
      config: of the family.
      shapes: path → shape and type of every parameter that the files should hold.
      placement: path → sharding; None is the default device.
      fresh: a new head will be drawn: "classifier" is not read, and "pooler" may be missing.

    Returns:
      Path → parameter; with `fresh`, without the parameters that are to be drawn.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      ModuleNotFoundError: the weights are torch's .bin files and there is no torch.
      ValueError: a damaged file, or tensors missing, misshapen, of a type that is not floating point, or left over.
    """
    with contextlib.ExitStack() as stack:
        weights, names, tensors = open_checked(directory, family, config, shapes, stack, fresh=fresh)
        paths = {path for path, _ in names.values()}
        return {
            weight.path: pretrained.read_weight(
                weight, tensors, shapes[weight.path], _layers(weight, shapes), placement[weight.path]
            )
            for weight in weights
            if weight.path in paths
        }


def open_checked(
    directory: Path,
    family: Family,
    config: Any,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    stack: contextlib.ExitStack,
    *,
    fresh: bool = False,
) -> tuple[list[Weight], dict[str, tuple[str, tuple[int, ...]]], dict[str, Any]]:
    """Opens a model's files and checks every name, shape and type by their headers; arguments and errors as of `read_params`.

    Returns:
      The family's rows; name → (path, shape) of the tensors to read; name → lazily read tensor. `stack` closes the files.
    """
    weights = [weight for weight in family.weights(config) if weight.path in shapes]
    names = expected(weights, shapes)
    files = pretrained.open_weights(directory, stack)
    # Of a tensor and its copies, the one with the table's name is used.
    tensors = {canonical(family, name, names): files[name] for name in sorted(files, key=lambda n: n in names)}
    if fresh:
        drawn = {name for name in names if names[name][0].startswith("classifier/")}
        drawn |= {name for name in names if names[name][0].startswith("pooler/") and name not in tensors}
        names = {name: names[name] for name in names.keys() - drawn}
        tensors = {name: tensors[name] for name in tensors.keys() - drawn}
    _check(directory, family, names, tensors, fresh)
    return weights, names, tensors


def _check(directory: Path, family: Family, names, tensors: Mapping[str, Any], fresh: bool) -> None:
    """Raises ValueError naming every tensor that is missing, misshapen, of a wrong type or left over."""
    stored = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    common = sorted(names.keys() & stored.keys())
    ignored = rf"{REDUNDANT.pattern}|{family.redundant}" + (
        r"|^(score|classifier|classification_head)\." if fresh else ""
    )
    problems = {
        "missing": sorted(names.keys() - stored.keys()),
        "misshapen": [
            f"{name} {list(stored[name])} instead of {list(names[name][1])}"
            for name in common
            if stored[name] != names[name][1]
        ],
        "not floating point": [
            f"{name} ({tensors[name].get_dtype()})"
            for name in common
            if tensors[name].get_dtype() not in pretrained.FLOATS
        ],
        "left over": sorted(name for name in stored.keys() - names.keys() if not re.search(ignored, name)),
    }
    lines = [f"  {what}: {pretrained.few(tensor_names)}" for what, tensor_names in problems.items() if tensor_names]
    if lines:
        raise ValueError(
            f"The tensors in {directory} are not those of a {family.stem}ForSequenceClassification of its config.json:\n"
            + "\n".join(lines)
        )


def tensors_of(
    weights: Iterable[Weight], flat: Mapping[str, jax.Array]
) -> tuple[dict[str, pretrained.Tensor], dict[str, Any]]:
    """Parameters by path → tensors by name, in torch's layout, and the type of each: the inverse of `read_params`."""
    tensors, dtypes = {}, {}
    for weight in weights:
        if weight.path in flat:
            leaf = flat[weight.path]
            shape = pretrained.torch_shape(weight, leaf.shape)
            for i, name in enumerate(weight.names(_layers(weight, flat))):
                layer = i if "{}" in weight.name else None
                tensors[name] = pretrained.Tensor(
                    shape, "", functools.partial(pretrained.torch_slice, leaf, layer, weight.transposed)
                )
                dtypes[name] = leaf.dtype
    return tensors, dtypes
