"""A linear layer with an optional low-rank adapter, and the split of a parameter tree into what is trained and what is frozen.

Letters: D input width, F output width, R rank.

LoRA (Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / R) · dropout(x) A B, with B zero at the start, so that the
adapted model begins as the base model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

PyTree = Any
ADAPTER_LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which linear layers carry an adapter, and its size.

    Attributes:
      rank: R, the width of the bottleneck.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: probability of dropping an input feature of the adapter while training.
      targets: regular expression, searched in the layer's path, e.g. "attention/(q|k|v|o)$" or "(q|v)$".
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str = r"attention/(q|k|v|o)$"

    def __post_init__(self):
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA needs rank >= 1 and 0 <= dropout < 1, not rank={self.rank}, dropout={self.dropout}."
            )


class Linear(nn.Module):
    """y = x W (+ bias) (+ LoRA). The kernel is stored [D, F], the transpose of torch's layout.

    Attributes:
      features: F.
      lora: adapter settings; the layer is adapted if `lora.targets` matches its path.
      use_bias: adds a bias vector.
      dtype: compute type.
      param_dtype: storage type of the kernel; adapters are always stored in float32, they are what is trained.
    """

    features: int
    lora: Lora | None = None
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Maps x [..., D] to [..., F]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param(
            "kernel", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), shape, self.param_dtype
        )
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype)
        if self.has_variable("params", "kernel_scale"):  # eight bits, see rollout/weights.py
            y *= self.get_variable("params", "kernel_scale")[0].astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(self.dtype)
        if self.lora is not None and re.search(self.lora.targets, "/".join(self.path)):
            rank = self.lora.rank
            a = self.param("lora_a", nn.initializers.variance_scaling(1.0, "fan_in", "uniform"), (x.shape[-1], rank))
            b = self.param("lora_b", nn.initializers.zeros, (rank, self.features))
            z = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
            y += (self.lora.alpha / rank) * (z @ a.astype(self.dtype)) @ b.astype(self.dtype)
        return y


def split(params: PyTree, is_trainable: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Splits a nested dict into (trainable, frozen) by a test of each leaf's path "a/b/c"; `merge` is its inverse."""
    flat = traverse_util.flatten_dict(params, sep="/")
    trainable = {path: leaf for path, leaf in flat.items() if is_trainable(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return traverse_util.unflatten_dict(trainable, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")


def merge(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Joins two nested dicts with disjoint leaves into one."""
    flat = traverse_util.flatten_dict(frozen, sep="/") | traverse_util.flatten_dict(trainable, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def fold(params: PyTree, lora: Lora | None) -> PyTree:
    """Adds every adapter to its kernel, W + (alpha / R) A B, and drops it; all other leaves are as they were.

    The sum is taken in float32 and stored in the kernel's type, so a bfloat16 kernel rounds what it learned.

    Args:
      params: nested dict with kernels [..., D, F] and, beside some of them, lora_a [..., D, R] and lora_b [..., R, F].
      lora: the settings that the adapters were trained under.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    folded = {}
    for path, leaf in flat.items():
        layer, _, name = path.rpartition("/")
        if name in ADAPTER_LEAVES:
            continue
        if name == "kernel" and f"{layer}/lora_a" in flat:
            a, b = (jnp.asarray(flat[f"{layer}/{factor}"], jnp.float32) for factor in ADAPTER_LEAVES)
            # Accelerators multiply float32 in fewer digits unless told.
            delta = lora.alpha / lora.rank * jnp.matmul(a, b, precision="highest")
            leaf = (jnp.asarray(leaf, jnp.float32) + delta).astype(leaf.dtype)
        folded[path] = leaf
    return traverse_util.unflatten_dict(folded, sep="/")


def is_adapter(path: str) -> bool:
    """True for the leaves trained under LoRA: the low-rank factors and the preference conditioning."""
    return path.rsplit("/", 1)[-1] in ADAPTER_LEAVES or path.startswith("conditioner/")
