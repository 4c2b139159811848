"""Accelerators as their vendors describe them: the limits that a step is compared with."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """An accelerator, as its vendor describes it.

    Attributes:
      name: as in a topology's name.
      flops: peak operations per second in bfloat16, dense, with float32 sums.
      memory: bytes of HBM.
      bandwidth: bytes per second of HBM.
      link: bytes per second of one link to other chips, one way.
      links: number of links.
      grid: dimensions of a slice's grid of chips, 0 for chips behind a switch.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    links: int
    grid: int = 0

    @property
    def interconnect(self) -> float:
        """Bytes per second that a chip can send, and receive at the same time, over all its links."""
        return self.link * self.links


# TPUs: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, key specifications. They give a chip's interconnect both ways
# (v5e 400, v6e 800 GB/s) or in Gbit/s one way (v4 2400, v5p 4800); a link is that divided by the number of ports.
# GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200 (an eighth of it), NVLink halved to one way.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32e9, 1200e9, 50e9, 6, 3),
        Chip("v5e", 197e12, 16e9, 819e9, 50e9, 4, 2),
        Chip("v5p", 459e12, 95e9, 2765e9, 100e9, 6, 3),
        Chip("v6e", 918e12, 32e9, 1638e9, 100e9, 4, 2),
        Chip("a100", 312e12, 80e9, 2039e9, 25e9, 12),
        Chip("h100", 989e12, 80e9, 3350e9, 25e9, 18),
        Chip("h200", 989e12, 141e9, 4800e9, 25e9, 18),
        Chip("b200", 2250e12, 180e9, 8000e9, 50e9, 18),
    )
}
