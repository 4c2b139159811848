"""The placement of arrays: one mesh, and one short table from the path of a leaf to its PartitionSpec.

Mesh axes: "data" splits the batch; "fsdp" splits the batch and, along the width D, the parameters; "tensor" splits
heads, hidden units and the vocabulary. Axes of size 1 cost nothing, so one table serves a single device and a pod.

Letters: V vocabulary, D width, F output width of a linear layer, R rank, L layers, K objectives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first pattern found in a leaf's path ("policy/transformer/layers/attention/q/kernel") gives its spec. Patterns are not
# anchored at the left, so optimizer moments, whose paths end with their parameter's ("policy_opt/1/mu/…"), are sharded like
# the parameter. Scalars and typed keys need no rule: they are replicated.
RULES: tuple[tuple[str, P], ...] = (
    # Baselines: stacked policies with a leading axis, buffers of answers, small cores and heads.
    (r"(^|/)(members|buffer|core|preferences)(/|$)", P()),
    # Reward models with their own weights (classifiers/): split only along the width or the MLP's hidden units,
    # since a vocabulary of 50,257 and 25 heads have few divisors.
    (r"(^|/)reward_models/.*(embedding|positions|types|relative)$", P(None, "fsdp")),
    (r"(^|/)reward_models/.*layers/.*/kernel$", P(None, "fsdp", None)),
    (r"(^|/)reward_models/", P()),
    # Small: the weight-net and its moments, the preference conditioning, reward statistics [K], norms [D] or [L, D].
    (r"(^|/)[^/]*net[^/]*/", P()),
    (r"(^|/)conditioner/", P()),
    (r"(^|/)reward(/|$)", P()),  # heads and tables of token-level rewards
    (r"(^|/)rewards/", P()),
    (r"_norm$", P()),
    # Tables [V, D].
    (r"(^|/)(embedding|output)$", P("tensor", "fsdp")),
    # Layers that read the width, [L, D, F]: their outputs (heads, hidden units) are split over tensor.
    (r"/(q|k|v|gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"/(q|k|v|gate|up)/bias$", P(None, "tensor")),
    (r"/(q|k|v|gate|up)/kernel_scale$", P(None, None, "tensor")),  # [L, 1, F], of an int8 rollout
    (r"/(o|down)/kernel_scale$", P(None, None, "fsdp")),
    (r"/(q|k|v|gate|up)/lora_a$", P(None, "fsdp", None)),  # [L, D, R]
    (r"/(q|k|v|gate|up)/lora_b$", P(None, None, "tensor")),  # [L, R, F]
    # Layers that write the width, [L, F, D]: their inputs are split, and their outputs summed over tensor.
    (r"/(o|down)/kernel$", P(None, "tensor", "fsdp")),
    (r"/(o|down)/bias$", P(None, "fsdp")),
    (r"/(o|down)/lora_a$", P(None, "tensor", None)),
    (r"/(o|down)/lora_b$", P(None, None, "fsdp")),
)


def make_mesh(
    data: int | None = None,
    fsdp: int | None = 1,
    tensor: int | None = 1,
    devices: Sequence[jax.Device] | None = None,
    slices: int | None = 1,
) -> Mesh:
    """The device mesh.

    Args:
      data, fsdp, tensor: sizes of the axes; at most one is None, the remaining devices.
      devices: defaults to all devices of all processes.
      slices: number of groups of devices with a slow network between them (TPU slices joined by the data center's); None
        takes the number that the devices report. The data axis is split over them first, so only gradients cross it.

    Returns:
      A mesh over all of `devices`, with Auto axes (Explicit ones, jax.make_mesh's default, break Linen's gathers).

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    listing = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size is None]
    if len(free) > 1 or any(size is not None and size < 1 for size in sizes.values()):
        raise ValueError(f"Mesh {listing}: sizes are positive, and at most one is None (the remaining devices).")
    product = math.prod(size for size in sizes.values() if size is not None)
    if len(devices) % product or (not free and len(devices) != product):
        advice = "change the sizes" if free else "change the sizes, or set one to None to take the remaining devices"
        raise ValueError(f"Mesh {listing} does not fit {len(devices)} device(s): {advice}.")
    if free:
        sizes[free[0]] = len(devices) // product
    types = (AxisType.Auto,) * len(AXES)
    slices, by_process = _slices(devices, slices)
    if slices == 1:
        shape = tuple(sizes.values())
        try:
            return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
        except NotImplementedError:
            # No axis of the TPUs' grid has this size, such as 4 on 8 × 8: two mesh axes share one of the grid's.
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
            return Mesh(grid, AXES, axis_types=types)
    if sizes["data"] % slices:
        raise ValueError(
            f"Mesh {listing} over {slices} slices of {len(devices) // slices} devices: data={sizes['data']} is not a "
            f"multiple of {slices}. Slices split the data axis alone: make fsdp × tensor divide a slice's devices."
        )
    inside = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    grid = mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, process_is_granule=by_process, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def _slices(devices: Sequence[jax.Device], requested: int | None) -> tuple[int, bool]:
    """The number of slices, and whether each process counts as one: on CPUs, and if devices name no slice."""
    indices = [getattr(device, "slice_index", None) for device in devices]
    by_process = None in indices or devices[0].platform == "cpu"
    groups = [device.process_index for device in devices] if by_process else indices
    actual = len(set(groups))
    if requested is None:
        requested = 1 if by_process else actual
    if requested == 1:
        return 1, by_process
    unit = "process(es), each of which counts as a slice, since these devices name none" if by_process else "slice(s)"
    if requested != actual:
        raise ValueError(
            f"config.mesh.slices={requested}, but the devices are of {actual} {unit}. Set it to {actual}, or to None to "
            "take the number that the devices report; 1 assumes the same network everywhere."
        )
    if len({groups.count(group) for group in groups}) > 1:
        raise ValueError(f"config.mesh.slices={requested}: the slices differ in size, so no mesh covers them evenly.")
    return actual, by_process


def abstract(tree: PyTree, placement: PyTree) -> PyTree:
    """Shapes and types of a tree with shardings: a tree of these, or one for all leaves."""
    if isinstance(placement, jax.sharding.Sharding):
        placement = jax.tree.map(lambda _: placement, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, placement)


def shardings(tree: PyTree, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> PyTree:
    """One NamedSharding per leaf.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
      rules: (pattern, spec) pairs; the first pattern that `re.search` finds in a leaf's path gives its spec.

    Returns:
      A pytree like `tree`.

    Raises:
      ValueError: lists every leaf that no rule matches, and every leaf that its rule cannot split evenly.
    """
    problems = []

    def place(keys, leaf):
        shape = tuple(getattr(leaf, "shape", ()))  # () for a typed key, whose words are no dimension
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        spec = P() if not shape else next((spec for pattern, spec in rules if re.search(pattern, path)), None)
        problems.extend(_misfits(path, shape, spec, mesh))
        return NamedSharding(mesh, P() if spec is None else spec)

    placement = jax.tree_util.tree_map_with_path(place, tree)
    if problems:
        raise ValueError("Some leaves cannot be sharded:\n  " + "\n  ".join(problems))
    return placement


def without_axis(tree: PyTree, axis: str, rules: Sequence[tuple[str, P]] = RULES) -> PyTree:
    """Inside a jitted function: the leaves gathered along one mesh axis, split along the others as their rules say.

    Outside of any mesh (`jax.set_mesh`) it changes nothing.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def gather(keys, leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        spec = P() if not leaf.shape else next(spec for pattern, spec in rules if re.search(pattern, path))
        return jax.lax.with_sharding_constraint(leaf, P(*(None if part == axis else part for part in spec)))

    return jax.tree_util.tree_map_with_path(gather, tree)


def over_batch(x: jax.Array) -> jax.Array:
    """Inside a jitted function: x with its leading dimension split as a batch is; unchanged where no mesh is set.

    Without the constraint the compiler may keep the weights in place and split activations along the width. For passes of
    some thousand tokens or more this moves more data than gathering a layer's weights. For passes of few tokens, such as a
    step of decoding, the compiler's choice is better.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


def _misfits(path: str, shape: tuple[int, ...], spec: P | None, mesh: Mesh) -> list[str]:
    """The faults of a spec for a leaf, one sentence each."""
    if spec is None:
        return [f"{path} {list(shape)}: no rule matches; add one to RULES (P() replicates)."]
    if len(spec) > len(shape):
        return [f"{path} {list(shape)}: its rule {spec} names {len(spec)} dimensions; add a rule of its own before it."]
    faults = []
    for dimension, axes in enumerate(spec):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        pieces = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dimension] % pieces:
            faults.append(
                f"{path} {list(shape)}: dimension {dimension}, of {shape[dimension]}, does not divide over mesh axis "
                f"{' × '.join(axes)}, of {pieces}; choose another size for that axis."
            )
    return faults


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dimension (prompts) split over data and fsdp."""
    return NamedSharding(mesh, P(BATCH_AXES))


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Arrays that every process holds completely, as global arrays: each process makes the parts on its devices.

    `jax.device_put` would first send the arrays to all processes to compare them.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, np.asarray(a).__getitem__), tree)


def check_batch(mesh: Mesh, batch_size: int, what: str) -> None:
    """Raises ValueError unless the mesh divides a batch; `what` names the batch in the message."""
    pieces = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % pieces:
        sizes = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise ValueError(f"{what}: {batch_size} does not divide over {sizes}; make it a multiple of {pieces}.")
