"""Lower bounds of the time of a part of a step on a chip of a mesh, from its operations and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from meal_jax.chips import Chip
from meal_jax.cost import Cost


def pieces(mesh: Mapping[str, int]) -> tuple[int, int]:
    """The numbers of parts into which a mesh (axis → size) splits the batch, and the layers' widths."""
    return mesh.get("data", 1) * mesh.get("fsdp", 1), mesh.get("tensor", 1)


def on_chip(cost: Cost, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Operations and bytes of one chip of a mesh: every chip reads the weights of its slice of the widths."""
    batch, tensor = pieces(mesh)
    return cost.flops / (batch * tensor), cost.weights / tensor + cost.activations / (batch * tensor)


def gathered(cost: Cost, mesh: Mapping[str, int]) -> float:
    """Bytes that a chip receives if the weights, split over fsdp, are gathered for every product that reads them."""
    fsdp = mesh.get("fsdp", 1)
    return cost.weights / mesh.get("tensor", 1) * (fsdp - 1) / fsdp


class Bound(NamedTuple):
    """Lower bounds of a part's seconds on a chip, per resource."""

    compute: float
    memory: float
    network: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the slowest resource, the others hidden behind it."""
        return max(self)

    @property
    def by(self) -> str:
        """Name of the slowest resource."""
        return max(zip(self, self._fields, strict=True))[1]


def bound(cost: Cost, chip: Chip, mesh: Mapping[str, int] | None = None, received: float = 0.0) -> Bound:
    """The roofline of a part of a step. `received`: bytes that a chip receives from others."""
    flops, moved = on_chip(cost, mesh or {})
    return Bound(flops / chip.flops, moved / chip.bandwidth, received / chip.interconnect)
