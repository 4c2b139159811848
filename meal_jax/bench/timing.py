"""Seconds of a call, their spread, and the measured limits of this machine."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Ceilings(NamedTuple):
    """Measured limits of one device.

    Attributes:
      flops: operations per second of a large square matrix product.
      bandwidth: bytes per second of a large copy, read and written.
      dtype: of the product.
      size: its side.
      copied: bytes of the copied array.
    """

    flops: float
    bandwidth: float
    dtype: str
    size: int
    copied: int


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call until its arrays are ready, and its result."""
    began = time.perf_counter()
    out = jax.block_until_ready(call())
    return time.perf_counter() - began, out


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, quartiles and the samples themselves, for bench.json."""
    low, q1, median, q3 = np.quantile(samples, [0.0, 0.25, 0.5, 0.75]).tolist()
    return {"median": median, "min": low, "q1": q1, "q3": q3, "n": len(samples), "samples": list(map(float, samples))}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """The ratio of medians, and the spread of the ratios of pairs, which were measured one after the other."""
    pairs = np.divide(numerator, denominator)
    return {"of_medians": float(np.median(numerator) / np.median(denominator)), "of_pairs": spread(pairs)}


def ceilings(dtype: str, repeats: int = 5, for_s: float = 0.3) -> Ceilings:
    """Measures the ceilings on the first device: the best of several repeats, since disturbances only slow down.

    A GPU's clocks rise with work, so the repeats fill at least `for_s` seconds. Its rate of products depends on the numbers
    (on an H100, where power is the limit, ones were a fifth faster than normals), so normals are drawn.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, elements = (1536, 2**25) if on_cpu else (8192, 2**28)
    with jax.default_device(jax.local_devices()[0]):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        x = jax.random.normal(jax.random.key(1), elements, jnp.float32)
        product = jax.jit(lambda a: jnp.matmul(a, a))
        copy = jax.jit(lambda x: -x)  # a plain copy could be elided
        best = {}
        for name, call in (("product", lambda: product(a)), ("copy", lambda: copy(x))):
            jax.block_until_ready(call())
            times = [seconds(call)[0] for _ in range(repeats)]
            while sum(times) < for_s:
                times.append(seconds(call)[0])
            best[name] = min(times)
    return Ceilings(2 * size**3 / best["product"], 2 * x.nbytes / best["copy"], dtype, size, x.nbytes)


def peak_memory() -> tuple[float, str]:
    """The peak of bytes held so far: of the fullest device by its own count, else of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return float(max(peaks)), "device"
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit), "process"
