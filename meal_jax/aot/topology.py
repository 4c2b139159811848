"""Devices to compile for: TPU slices by name, from the compiler's own package, and GPUs by the cost model.

A topology is written v5e:4x8 (the grid of chips) or v5e-32 (their number); GPUs h100:8.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

from meal_jax.chips import CHIPS, Chip

# Slices that Cloud TPU offers, up to 256 chips (cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}), by the number of chips.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SLICES = {"v4": CUBE, "v5e": FLAT, "v5p": CUBE, "v6e": FLAT}
TENSORCORES = {"v4": 2, "v5p": 2}  # per chip; the cloud's names count these: v5p-16 there has 8 chips


class Topology(NamedTuple):
    """A slice of TPU chips, or GPUs behind one switch.

    Attributes:
      name: as `v5e:4x8` or `h100:8`.
      chip: the kind of chip.
      grid: chips along each dimension.
    """

    name: str
    chip: Chip
    grid: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.grid)

    @property
    def tpu(self) -> bool:
        """Whether it is a TPU, for which libtpu has the compiler."""
        return self.chip.grid > 0


def parse(text: str) -> Topology:
    """A topology from its name.

    Raises:
      ValueError: there is no such topology; lists the known ones.
    """
    match = re.fullmatch(r"(\w+)(?::|-)(\d+(?:x\d+)*)", text.strip().lower())
    kind, size = match.groups() if match else (text, "")
    if kind not in CHIPS or not size:
        raise ValueError(f"--topology={text!r} is not one of:\n{known()}")
    chip = CHIPS[kind]
    if not chip.grid:
        if "x" in size or int(size) < 1:
            raise ValueError(f"--topology={text!r}: GPUs are numbered, as {kind}:8.")
        return Topology(f"{kind}:{size}", chip, (int(size),))
    slices = SLICES[kind]
    if "x" not in size:
        if int(size) not in slices:
            raise ValueError(f"--topology={text!r}: there is no {kind} slice of {size} chips. Known are:\n{known()}")
        size = slices[int(size)]
    grid = tuple(int(part) for part in size.split("x"))
    if len(grid) != chip.grid or min(grid) < 1:
        raise ValueError(f"--topology={text!r}: a {kind} slice has {chip.grid} dimensions. Known are:\n{known()}")
    return Topology(f"{kind}:{size}", chip, grid)


def known() -> str:
    """The known topologies, one line per kind."""
    lines = [f"  {kind}: {', '.join(f'{kind}:{size}' for size in slices.values())}" for kind, slices in SLICES.items()]
    gpus = [kind for kind, chip in CHIPS.items() if not chip.grid]
    return "\n".join(
        [*lines, f"  GPUs, on fake devices and by the cost model: {', '.join(f'{kind}:8' for kind in gpus)}"]
    )


def devices(topology: Topology, fake: bool = False) -> list[Any]:
    """One device per chip: those of a TPU slice from its compiler; fake CPU devices for GPUs, and if `fake`.

    Raises:
      ModuleNotFoundError: no libtpu.
      ValueError: libtpu does not know the slice or gives another number of devices; or there are too few fake devices.
    """
    import jax  # imported here: names need no jax

    if fake or not topology.tpu:
        if jax.device_count() < topology.chips:
            raise ValueError(
                f"{topology.name} needs {topology.chips} devices to compile for, here are {jax.device_count()}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}."
            )
        return jax.devices()[: topology.chips]
    try:
        import libtpu  # noqa: F401  (jax finds it itself; imported to name what is missing)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"Compiling for {topology.name} needs the TPU compiler: pip install libtpu (Linux; it needs no TPU)."
        ) from None
    from jax.experimental import topologies

    quiet()
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
    except Exception as error:  # the plugin raises its own runtime errors
        raise ValueError(
            f"libtpu does not know the topology {topology.name} ({' '.join(str(error).split())[:300]}). Known are:\n{known()}"
        ) from error
    if len(described) != topology.chips:
        described = _one_per_chip(described)
    if len(described) != topology.chips:
        raise ValueError(f"libtpu gives {topology.name} {len(described)} devices instead of {topology.chips}.")
    return list(described)


def _one_per_chip(described: list[Any]) -> list[Any]:
    return [device for device in described if getattr(device, "core_on_chip", 0) == 0]


def quiet() -> None:
    """Tells libtpu that this is not a TPU machine, else it looks for one and complains."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock guards a chip, and no chip is used
        "TPU_ACCELERATOR_TYPE": "",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
