"""Reward heads: per objective one linear read-out of a frozen decoder's last hidden states.

Letters: B prompts, N candidates, K objectives, T response tokens, D width, F features of a response.

A head scores how much people prefer a response on its objective (Bradley–Terry: the difference of two raw scores is the
log-odds of one response over the other). Scores are shifted and scaled to mean 0 and standard deviation 1 over the held-out
responses; `temperature` converts differences back to log-odds.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from meal_jax.hf.storage import dense
from meal_jax.meal.step import Batch
from meal_jax.rollout.decode import Responses

PyTree = Any
FEATURES = ("last", "mean", "last+mean")
SHIPPED = Path(__file__).with_name("heads")  # heads that the package holds, by the names of their files
DEFAULT = "assistant_small"
SAMPLE = 512  # entries per parameter that are kept to recognise the base
BASE = "base/"  # prefix of those tensors in the file


class Heads(NamedTuple):
    """Heads as stored.

    Attributes:
      w: [K, F] float32.
      b: [K] float32.
      temperature: [K] float32, log-odds per unit of normalised score.
      objectives: K names.
      features: what a head reads: "last" (the state after the last token), "mean" (the mean of the states after each
        response token), or "last+mean" (both, concatenated).
      base: sampled parameters of the decoder that the heads read, see `fingerprint`.
      base_name: the decoder's name, for messages.
      format: of prompts and responses, see `meal_jax.data.chat.describe`.
      facts: how the heads were made, as JSON values.
    """

    w: np.ndarray
    b: np.ndarray
    temperature: np.ndarray
    objectives: tuple[str, ...]
    features: str
    base: dict[str, np.ndarray]
    base_name: str
    format: str
    facts: dict[str, Any]

    @property
    def params(self) -> dict[str, jax.Array]:
        """The parameters of `reward`."""
        return {"w": jnp.asarray(self.w), "b": jnp.asarray(self.b)}

    @property
    def reward(self) -> Callable[..., jax.Array]:
        """`meal.step.Setup.reward` for `params`."""
        return functools.partial(reward, kind=self.features)

    def select(self, objectives: tuple[str, ...]) -> Heads:
        """The heads of the given objectives, in the given order.

        Raises:
          ValueError: one has no head.
        """
        unknown = [name for name in objectives if name not in self.objectives]
        if unknown:
            raise ValueError(
                f"There is no reward head for {', '.join(unknown)}; the file has {', '.join(self.objectives)}. Set "
                "config.objectives to some of these, config.reward.heads to another file (python -m "
                "meal_jax.reward_training.heads fits one), or give each a source in config.reward.sources, such as "
                "python:mine.py:FUNCTION."
            )
        index = [self.objectives.index(name) for name in objectives]
        return self._replace(
            w=self.w[index], b=self.b[index], temperature=self.temperature[index], objectives=tuple(objectives)
        )


def features_of(hidden: jax.Array, mask: jax.Array, kind: str) -> jax.Array:
    """The features of responses that heads read.

    Args:
      hidden: [B, N, T + 1, D]; hidden[..., t, :] is the state after t response tokens.
      mask: [B, N, T] bool, True at the response's tokens (a prefix of each row).
      kind: one of FEATURES.

    Returns:
      [B, N, F] float32.
    """
    count = jnp.sum(mask, axis=-1)
    hidden = hidden.astype(jnp.float32)
    last = jnp.take_along_axis(hidden, count[..., None, None], axis=2)[:, :, 0]
    if kind == "last":
        return last
    # Selected, not multiplied: states after the end belong to padding and may be any number.
    mean = jnp.sum(jnp.where(mask[..., None], hidden[:, :, 1:], 0.0), axis=2) / jnp.maximum(count, 1)[..., None]
    if kind == "mean":
        return mean
    return jnp.concatenate([last, mean], axis=-1)


def reward(
    params: Mapping[str, jax.Array], batch: Batch, responses: Responses, hidden: jax.Array, *, kind: str
) -> jax.Array:
    """Normalised scores [B, N, K] of responses, from `Heads.params` and the base's hidden states [B, N, T + 1, D]."""
    return features_of(hidden, responses.mask, kind) @ params["w"].T + params["b"]


def fingerprint(params: PyTree) -> dict[str, np.ndarray]:
    """Up to SAMPLE evenly spread entries of each parameter of a decoder (from `pretrained.load_params`), in float32."""
    out = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        position = np.linspace(0, leaf.size - 1, min(SAMPLE, leaf.size)).astype(np.int64)
        index = np.unravel_index(position, leaf.shape)
        out[path] = np.asarray(leaf[index]).astype(np.float32)
    return out


def check_base(heads: Heads, params: PyTree, where: str, *, tuned: bool = False) -> None:
    """Refuses a decoder that the heads were not trained on.

    Norms must agree to a bfloat16's digits, matrices in correlation. So the model passes in any storage type and after
    4-bit quantization (which leaves norms as they are). A fine-tune of all weights, another size or another model does not.
    A light fine-tune correlates as well as a quantized model; if the decoder is known to be one, matrices must agree like
    norms.

    Args:
      heads: as loaded.
      params: the decoder's.
      where: the decoder's directory or id, for the message.
      tuned: the decoder is known to be a fine-tune, such as `config.stage=sft` writes.

    Raises:
      ValueError: another decoder.
    """
    sampled, stored = fingerprint(params), heads.base
    advice = (
        f"The reward heads read the hidden states of {heads.base_name} and mean nothing on another model. Train heads "
        "for yours (python -m meal_jax.reward_training.heads --config=CONFIG --config.source=…, where CONFIG is "
        "configs/reward_small.py, configs/reward_reddit_small.py or configs/reward_own.py:NAME,NAME), or set "
        "config.policy.source to that model."
    )
    for path in sorted(sampled.keys() | stored.keys()):
        if path not in sampled or path not in stored or sampled[path].shape != stored[path].shape:
            raise ValueError(f"{where} is another model than the reward heads' ({path} differs in size). {advice}")
        a, b = sampled[path], stored[path]
        if tuned or path.endswith("norm"):
            same = np.allclose(a, b, rtol=1 / 128, atol=1e-6)
        else:
            same = a @ b >= 0.97 * np.sqrt((a @ a) * (b @ b))
        if not same:
            raise ValueError(f"{where} is another model than the reward heads' ({path} differs). {advice}")


def check_format(heads: Heads, format: str) -> None:
    """Raises ValueError if the format of conversations differs from that of the heads' training."""
    if heads.format != format:
        raise ValueError(
            f"The reward heads were trained on conversations in the format [{heads.format}], here it is [{format}]. "
            "Use the tokenizer files and system message of that format, or train heads on yours "
            "(python -m meal_jax.reward_training.heads)."
        )


def save(heads: Heads, path: str | os.PathLike) -> None:
    """Writes a .safetensors file; an old one is replaced atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: dense(getattr(heads, name), np.float32) for name in ("w", "b", "temperature")}
    tensors |= {BASE + name: value for name, value in heads.base.items()}
    names = ("objectives", "features", "base_name", "format", "facts")
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(serialise(tensors, metadata={name: json.dumps(getattr(heads, name)) for name in names}))
    os.replace(partial, path)


def locate(path: str | os.PathLike | None = None) -> Path:
    """A heads file, or the shipped one of that name; by default that of `DEFAULT`.

    Raises:
      FileNotFoundError: no such file.
    """
    path = Path(path or DEFAULT).expanduser()
    shipped = (SHIPPED / path).with_suffix(".safetensors")
    if len(path.parts) == 1 and not path.exists() and shipped.is_file():
        path = shipped
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
        raise FileNotFoundError(
            f"There are no reward heads at {path}. The package has {known}. "
            "Others are fitted by python -m meal_jax.reward_training.heads --config=CONFIG, of your own pairs with "
            "configs/reward_own.py:NAME,NAME."
        )
    return path


def load(path: str | os.PathLike | None = None) -> Heads:
    """Reads a heads file, as `locate` finds it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a heads file, or damaged.
    """
    path = locate(path)
    try:
        with safe_open(path, framework="numpy") as file:
            meta = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        heads = Heads(
            **{name: tensors.pop(name) for name in ("w", "b", "temperature")},
            base={name.removeprefix(BASE): value for name, value in tensors.items()},
            **(meta | {"objectives": tuple(meta["objectives"])}),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a file of reward heads, or is damaged ({error}). Train heads with python -m "
            "meal_jax.reward_training.heads, or leave config.reward.heads empty for the shipped ones."
        ) from error
    if heads.features not in FEATURES or heads.w.ndim != 2 or len(heads.w) != len(heads.objectives):
        raise ValueError(
            f"{path} does not fit together: heads {heads.w.shape} for {heads.objectives}. Train them again."
        )
    return heads
