"""A linear layer with an optional low-rank adapter, and the split of a parameter tree into what is trained and what is frozen.

Letters: B prompts, N candidates, T tokens, K objectives, D input width, F output width, R rank.

LoRA (Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / R) · dropout(x) A B, with B zero at the start, so that the
adapted model begins as the base model.

An adapter can also read a preference w: its rank is split into K blocks of R / K, one per objective, and block k is scaled by
K w_k, y = x W + (alpha / R) Σ_k K w_k (x A_k) B_k (`block_scale`). At the uniform preference that is the plain adapter. At a
one-hot preference it is a plain adapter of rank R / K with the same alpha, that objective's expert. At any one preference it
is a plain adapter of rank R (`bake`). The idea is that of parameter-space conditioning, as in CLP (arXiv 2407.15762) and
Panacea (arXiv 2402.02030); this form is our choice.
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
# Paths of a decoder's linear layers, which `Lora.targets` is searched in
LAYERS = tuple(f"transformer/layers/{name}" for name in (
    "attention/q", "attention/k", "attention/v", "attention/o", "mlp/gate", "mlp/up", "mlp/down",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which linear layers carry an adapter, and its size.

    Attributes:
      rank: R, the width of the bottleneck.
      alpha: the adapter's output is scaled by alpha / rank.
      dropout: probability of dropping an input feature of the adapter while training.
      targets: regular expression, searched in the layer's path, e.g. "attention/(q|k|v|o)$" or "(q|v)$"; all layers of a
        stack have one path, "transformer/layers/attention/q", where they are unstacked too.
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

    def adapts(self, path: str) -> bool:
        """Whether the linear layer at a path carries an adapter."""
        return re.search(self.targets, re.sub(r"/layers_\d+/", "/layers/", path)) is not None


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
    def __call__(self, x: jax.Array, deterministic: bool = True, scale: jax.Array | None = None) -> jax.Array:
        """Maps x [..., D] to [..., F]; the adapter's R inner features are multiplied by `scale`, broadcastable to [..., R]."""
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
        if self.lora is not None and self.lora.adapts("/".join(self.path)):
            rank = self.lora.rank
            a = self.param("lora_a", nn.initializers.variance_scaling(1.0, "fan_in", "uniform"), (x.shape[-1], rank))
            b = self.param("lora_b", nn.initializers.zeros, (rank, self.features))
            z = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
            inner = z @ a.astype(self.dtype)
            if scale is not None:
                inner *= scale.astype(self.dtype)
            y += (self.lora.alpha / rank) * inner @ b.astype(self.dtype)
        return y


def block_scale(w: jax.Array, rank: int) -> jax.Array:
    """K w_k for each of the R / K inner features of block k: preferences [..., K] to [..., R].

    Raises:
      ValueError: K does not divide R.
    """
    objectives = w.shape[-1]
    if rank % objectives:
        raise ValueError(f"LoRA's rank {rank} cannot be split into {objectives} blocks, one per objective.")
    return jnp.repeat(objectives * w, rank // objectives, axis=-1)


def bake(params: PyTree, w: jax.Array) -> PyTree:
    """Adapters that read a preference, as plain ones at the preference w [K]: B's blocks of rows are multiplied by K w_k.

    Args:
      params: nested dict with lora_b [..., R, F] in places; all other leaves stay as they are.
      w: [K].
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    scaled = {
        path: leaf * block_scale(jnp.asarray(w), leaf.shape[-2])[:, None]
        for path, leaf in flat.items()
        if path.rpartition("/")[-1] == "lora_b"
    }
    return traverse_util.unflatten_dict(flat | scaled, sep="/")


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


def update(a: jax.Array, b: jax.Array, lora: Lora) -> jax.Array:
    """What an adapter adds to its kernel, (alpha / R) A B [..., D, F] in float32, from A [..., D, R] and B [..., R, F]."""
    a, b = (jnp.asarray(factor, jnp.float32) for factor in (a, b))
    # Accelerators multiply float32 in fewer digits unless told.
    return lora.alpha / lora.rank * jnp.matmul(a, b, precision="highest")


def fold(params: PyTree, lora: Lora | None, dtype: Any = None) -> PyTree:
    """Adds every adapter to its kernel, W + (alpha / R) A B, and drops it; all other leaves are as they were.

    The sum is taken in float32 and stored in the kernel's type, so a bfloat16 kernel rounds what it learned
    (`export.rounding` measures how much).

    Args:
      params: nested dict with kernels [..., D, F] and, beside some of them, lora_a [..., D, R] and lora_b [..., R, F].
      lora: the settings that the adapters were trained under.
      dtype: storage type of the adapted kernels; None for their own.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    folded = {}
    for path, leaf in flat.items():
        layer, _, name = path.rpartition("/")
        if name in ADAPTER_LEAVES:
            continue
        if name == "kernel" and f"{layer}/lora_a" in flat:
            delta = update(*(flat[f"{layer}/{factor}"] for factor in ADAPTER_LEAVES), lora)
            leaf = (jnp.asarray(leaf, jnp.float32) + delta).astype(dtype or leaf.dtype)
        folded[path] = leaf
    return traverse_util.unflatten_dict(folded, sep="/")


def is_adapter(path: str) -> bool:
    """True for the leaves trained under LoRA: the low-rank factors and the preference conditioning."""
    return path.rsplit("/", 1)[-1] in ADAPTER_LEAVES or path.startswith("conditioner/")
