"""How a rollout holds the policy's weights: as they are, with adapters merged, or in eight bits; gathered; layers apart.

A decoded token reads every weight once and does little arithmetic on it, so what a rollout costs is bytes moved: from memory,
and between devices where the mesh's fsdp axis splits the weights. Each choice is carried out once a rollout, inside the step.

Letters: L layers, D input width, F output width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from meal_jax.models.lora import fold
from meal_jax.models.policy import Policy
from meal_jax.models.transformer import layer_name
from meal_jax.runtime import sharding

PyTree = Any
KINDS = ("same", "merged", "int8")
DECODING = ("plain", "triton")


@dataclasses.dataclass(frozen=True)
class RolloutWeights:
    """The choice, as `config.rollout` has it; hashable.

    Attributes:
      weights: "same"; "merged" folds adapters into their kernels, which saves two small products a layer and rounds what they
        learned to the kernels' type; "int8" holds the kernels of linear layers in eight bits with a scale for each output,
        adapters, embeddings and norms as they are.
      gather: split along the mesh's tensor axis alone: one gather along fsdp a rollout, and not one a token.
      unstack_layers: each layer's weights, keys and values are arrays of their own. Stacked, a CPU and a GPU copy each layer's
        weights out of the stack at every token; unstacked, once per rollout. It compiles longer, and those copies are held
        beside the stack.
      attention: "plain", or "triton", a kernel for GPUs (models/decode_attention.py).
    """

    weights: str = "same"
    gather: bool = False
    unstack_layers: bool = False
    attention: str = "plain"

    def __post_init__(self):
        if self.attention not in DECODING:
            raise ValueError(f"config.rollout.attention={self.attention!r} is not one of {', '.join(DECODING)}.")
        if self.weights not in KINDS:
            raise ValueError(f"config.rollout.weights={self.weights!r} is not one of {', '.join(KINDS)}.")


AS_STORED = RolloutWeights()


def for_rollout(policy: Policy, params: PyTree, how: RolloutWeights) -> tuple[Policy, PyTree]:
    """The policy and its parameters as a rollout uses them.

    Under "merged" and "int8" the sampler's distribution is not to the bit the one that the update scores; the sampler's own
    log-probabilities, which importance ratios divide by, are those of what was drawn.
    """
    config = policy.config
    if how.weights == "merged" and config.lora is not None:
        if policy.conditioning.scales_adapters:
            raise ValueError(
                "Adapters that read a preference differ by candidate: config.rollout.weights='merged' cannot be."
            )
        params = fold(params, config.lora)
        config = dataclasses.replace(config, lora=None)
    elif how.weights == "int8":
        params = quantize(params)
    if how.gather:
        params = sharding.without_axis(params, "fsdp")
    if how.unstack_layers:
        params = take_apart(params)
    return policy.clone(
        config=dataclasses.replace(config, unstack_layers=how.unstack_layers, decoding=how.attention)
    ), params


def take_apart(params: PyTree) -> PyTree:
    """Every leaf [L, ...] of the layers as L leaves, where a policy with `config.unstack_layers` looks for them."""
    out = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        place, layers, name = path.partition("/layers/")
        if layers:
            out |= {f"{place}/{layer_name(i)}/{name}": layer for i, layer in enumerate(jnp.unstack(leaf))}
        else:
            out[path] = leaf
    return traverse_util.unflatten_dict(out, sep="/")


def quantize(params: PyTree) -> PyTree:
    """Every kernel [L, D, F] as int8 and kernel_scale [L, 1, F]: symmetric, to the nearest of 255 levels an output."""
    flat = traverse_util.flatten_dict(params, sep="/")
    out = dict(flat)
    for path, leaf in flat.items():
        if path.startswith("transformer/layers/") and path.endswith("/kernel"):
            wide = leaf.astype(jnp.float32)
            scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=-2, keepdims=True), 1e-12) / 127.0
            out[path] = jnp.round(wide / scale).astype(jnp.int8)
            out[f"{path}_scale"] = scale
    return traverse_util.unflatten_dict(out, sep="/")
