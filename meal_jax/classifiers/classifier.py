"""Sequence classifiers, the reward models of the benchmarks, from Hugging Face directories and back, without torch.

    classifier = load("DIRECTORY or hub id")
    logits = jax.jit(classifier.apply)(classifier.params, tokens, mask, types)  # [R, labels]

Each agrees with transformers' torch class to float32's accuracy: GPT-2, BERT, RoBERTa, DistilBERT, DeBERTa v2 and v3, BART,
and the decoders of hf/families.py. (Accelerators multiply float32 with fewer digits unless jax_default_matmul_precision says
otherwise.) Which objective reads which logit, and how texts become tokens, is decided elsewhere.

Letters: R rows (texts), T tokens, L layers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from meal_jax.classifiers import bart, bert, deberta, decoder, gpt2
from meal_jax.classifiers.family import SETTINGS, Family, open_checked, read_params, tensors_of
from meal_jax.classifiers.layers import ACTIVATIONS
from meal_jax.hf import families, pretrained
from meal_jax.models.lora import ADAPTER_LEAVES

PyTree = Any
ENCODERS = (gpt2.FAMILY, bert.BERT, bert.ROBERTA, bert.DISTILBERT, deberta.FAMILY, bart.FAMILY)
CLASSIFIER = "ForSequenceClassification"
BASES = r"Model|LMHeadModel|For(CausalLM|MaskedLM|PreTraining|ConditionalGeneration)"


class Classifier(NamedTuple):
    """A model that maps texts to logits.

    Attributes:
      apply: (params, tokens [R, T] int, mask [R, T] bool, types [R, T] int) → logits [R, labels] float32. Pure, for jit. Rows
        are padded on the right; results do not depend on the padding or its ids. A row of padding only gets finite numbers
        without meaning. `types` are token types (0, and 1 in the second text of a pair), read by the
        models that have them. Raises ValueError, while tracing, where T is more than `max_length`.
      params: nested dict; "pooler" and "classifier" are the head.
      labels: number of logits.
      max_length: max number of tokens of a text.
      pad: padding id in the model's files.
      family: config.json's model_type: "gpt2", "bert", "roberta", "distilbert", "deberta-v2", "bart", "llama", …
      config: the family's configuration, for `save`.
    """

    apply: Callable[[PyTree, jax.Array, jax.Array, jax.Array], jax.Array]
    params: PyTree
    labels: int
    max_length: int
    pad: int
    family: str
    config: Any


def load_config(source: str | os.PathLike, *, fresh_head: int | None = None, **settings):
    """Reads config.json of a classifier.

    Args:
      source: directory or hub id.
      fresh_head: number of labels of a new head; with it, config.json may also be a base model's.
      **settings: fields that do not come from a file: dtype, param_dtype, remat, lora.

    Returns:
      The configuration of the family that config.json names under "architectures" (or, without that, "model_type").

    Raises:
      FileNotFoundError: no config.json.
      ValueError: the architecture or another setting is not implemented, each named; or an entry is missing.
      TypeError: an unknown setting.
    """
    path = pretrained.resolve(source) / "config.json"
    return parse(pretrained.read_json(path), path, fresh_head=fresh_head, **settings)


def parse(c: Mapping[str, Any], path: Path, *, fresh_head: int | None = None, **settings):
    """The configuration that the entries of a config.json, at `path` for messages, describe; see `load_config`."""
    unknown = settings.keys() - set(SETTINGS)
    if unknown:
        raise TypeError(f"Classifiers have no setting {', '.join(sorted(unknown))}; they have {', '.join(SETTINGS)}.")
    family = _family_of_file(path, c, fresh_head is not None)
    bad = family.unimplemented(c) + [name for name in ("quantization_config",) if c.get(name)]
    try:
        fields = family.fields(c)
    except KeyError as error:
        raise ValueError(f"{path} has no entry {error}: it does not describe a {family.stem} model.") from None
    if fields.get("activation", "gelu") not in ACTIVATIONS:
        bad.append(f"activation {fields['activation']} ({', '.join(ACTIVATIONS)} are)")
    if bad:
        raise ValueError(f"{path} asks for what is not implemented: {'; '.join(bad)}. Use another model.")
    labels = _labels(c) if fresh_head is None else fresh_head
    return family.config(**fields, family=family.name, labels=labels, **settings)


def load(
    source: str | os.PathLike,
    *,
    dtype: str = "float32",
    sharding: jax.sharding.Sharding | Callable[[PyTree], PyTree] | None = None,
    fresh_head: int | None = None,
    seed: int = 0,
    **settings,
) -> Classifier:
    """Loads a classifier.

    Args:
      source: directory or hub id, with safetensors or another format that hf/pretrained.py opens.
      dtype: compute type, "float32" or "bfloat16"; norms, softmax and the head are float32 either way.
      sharding: None for the default device, one sharding for every parameter, or a function of the tree of shapes that
        gives a tree of shardings.
      fresh_head: None reads the head. A number of labels starts with a new head, on a classifier or a base model
        (GPT2Model, BertForMaskedLM, LlamaForCausalLM, …): "classifier" is drawn, and "pooler" unless the files have it.
      seed: of the drawn parameters: a new head, and LoRA adapters.
      **settings: param_dtype (storage type of the weights, float32), remat, lora; see classifiers/layers.py.

    Returns:
      Classifier.

    Raises:
      FileNotFoundError: no config.json or no weights.
      ValueError: something is not implemented, or the files do not hold the tensors that config.json describes; each fault
        is named. All names and shapes are checked before anything is put on a device.
    """
    directory = pretrained.resolve_weights(source)
    config = load_config(directory, fresh_head=fresh_head, dtype=dtype, **settings)
    shapes = param_shapes(config)
    placement = _placement(shapes, sharding)
    stored = {path: leaf for path, leaf in shapes.items() if not path.endswith(ADAPTER_LEAVES)}
    flat = read_params(directory, family_of(config), config, stored, placement, fresh=fresh_head is not None)
    key = jax.random.key(seed)
    for i, path in enumerate(sorted(shapes.keys() - flat.keys())):
        flat[path] = jax.device_put(_draw(path, shapes[path], jax.random.fold_in(key, i)), placement[path])
    return make_classifier(config, traverse_util.unflatten_dict(flat, sep="/"))


def check(source: str | os.PathLike):
    """The configuration; refuses what `load` would, from config.json and the files' headers. Errors as of `load`."""
    directory = pretrained.resolve_weights(source)
    config = load_config(directory)
    with contextlib.ExitStack() as stack:
        open_checked(directory, family_of(config), config, param_shapes(config), stack)
    return config


def init(config, key: jax.Array) -> Classifier:
    """A classifier with all parameters drawn, for training from scratch."""
    dummy = jnp.zeros((1, 1), jnp.int32)
    model = family_of(config).model(config)
    return make_classifier(config, jax.jit(model.init)(key, dummy, dummy == 0, dummy)["params"])


def make_classifier(config, params: PyTree) -> Classifier:
    """The classifier of a configuration and its parameters."""
    model = family_of(config).model(config)

    def apply(params, tokens, mask, types):
        if tokens.shape[1] > config.positions:
            raise ValueError(
                f"Rows of {tokens.shape[1]} tokens are longer than the {config.positions} positions of this "
                f"{config.family} model; cut the texts."
            )
        return model.apply({"params": params}, tokens, mask, types)

    return Classifier(apply, params, config.labels, config.positions, config.pad, config.family, config)


def save(
    directory: str | os.PathLike,
    config,
    params: PyTree,
    *,
    settings: Mapping[str, Any] | None = None,
    files: Iterable[str | os.PathLike] = (),
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a directory that `load` and transformers' AutoModelForSequenceClassification read.

    Args:
      directory: created if missing.
      config: `Classifier.config`.
      params: as `Classifier.params`, adapters folded into their kernels (lora.fold); each is stored in its own type.
      settings: entries of config.json to add or replace, such as id2label.
      files: copied to the directory, for example the tokenizer's.
      max_shard_bytes: see `pretrained.save`.

    Raises:
      ValueError: parameters missing, misshapen or unknown; then nothing is written.
    """
    family = family_of(config)
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = {path: leaf for path, leaf in param_shapes(config).items() if not path.endswith(ADAPTER_LEAVES)}
    wrong = sorted(flat.keys() ^ shapes.keys())
    wrong += sorted(path for path in flat.keys() & shapes.keys() if np.shape(flat[path]) != shapes[path].shape)
    if wrong:
        hint = " Fold the adapters into their kernels first." if any("lora_" in path for path in wrong) else ""
        raise ValueError(f"Parameters that are missing, unknown or misshapen: {pretrained.few(wrong)}.{hint}")
    names = {i: f"LABEL_{i}" for i in range(config.labels)}
    entries = family.entries(config) | {
        "architectures": [family.stem + CLASSIFIER],
        "model_type": family.name,
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        "torch_dtype": config.param_dtype,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for file in map(Path, files):
        shutil.copyfile(file, directory / file.name)
    pretrained.write_files(
        directory, entries | dict(settings or {}), *tensors_of(family.weights(config), flat), max_shard_bytes
    )


def family_of(config) -> Family:
    """The family of a configuration."""
    encoders = {family.name: family for family in ENCODERS}
    return encoders[config.family] if config.family in encoders else decoder.make_family(config.family)


@functools.cache
def param_shapes(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Path "a/b/c" → shape and type of every parameter of a classifier."""
    dummy = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    shapes = jax.eval_shape(family_of(config).model(config).init, jax.random.key(0), dummy, mask, dummy)["params"]
    return traverse_util.flatten_dict(shapes, sep="/")


def _family_of_file(path: Path, c: Mapping[str, Any], fresh: bool) -> Family:
    architectures = c.get("architectures") or []
    every_family = [*ENCODERS, *(decoder.make_family(name, path) for name in families.FAMILIES)]
    for family in every_family:
        if architectures == [family.stem + CLASSIFIER] or (not architectures and c.get("model_type") == family.name):
            return family
        # The base of Gemma3TextForSequenceClassification is Gemma3ForCausalLM.
        stem = family.stem.removesuffix("Text")
        if len(architectures) == 1 and re.fullmatch(f"{stem}(Text)?({BASES})", architectures[0]):
            if fresh:
                return family
            raise ValueError(
                f"{path} describes a {architectures[0]}, which has no classification head. Give fresh_head, the number of "
                "labels, to begin with a new one and train it."
            )
    known = ", ".join(family.stem + CLASSIFIER for family in every_family)
    asked = f"architecture {', '.join(architectures)}" if architectures else f"model_type {c.get('model_type')}"
    raise ValueError(f"{path} asks for what is not implemented: {asked} ({known} are). Use another model.")


def _labels(c: Mapping[str, Any]) -> int:
    """Number of labels. A file that names none has two: transformers leaves out two labels without names.

    For BART too, where transformers 5 assumes three labels in such a file, its own, and fails to load it.
    """
    return len(c.get("id2label") or ()) or c.get("num_labels") or c.get("_num_labels") or 2


def _placement(shapes: Mapping[str, jax.ShapeDtypeStruct], sharding) -> Mapping[str, Any]:
    if not callable(sharding):
        return dict.fromkeys(shapes, sharding)
    placement = traverse_util.flatten_dict(sharding(traverse_util.unflatten_dict(shapes, sep="/")), sep="/")
    if placement.keys() != shapes.keys():
        raise ValueError(f"Parameters and shardings differ in: {', '.join(sorted(placement.keys() ^ shapes.keys()))}.")
    return placement


def _draw(path: str, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    """A new parameter of a head or an adapter, as lora.Linear initialises it: matrices of variance 1 / fan-in, else zeros."""
    if path.endswith(("kernel", "lora_a")):
        return nn.initializers.normal(leaf.shape[-2] ** -0.5)(key, leaf.shape, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)
