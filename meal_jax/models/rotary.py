"""Rotary positions (RoFormer, arXiv 2104.09864), and how their frequencies are lowered for longer contexts.

Letters: C width of a head.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered, so that a model reads more than the context it was first trained on.

    Attributes:
      kind: "linear" divides all frequencies by `factor` (arXiv 2306.15595); "llama3" divides those of long wavelength, keeps
        those of short wavelength, and goes from one to the other between (Llama 3.1).
      factor: at least 1.
      low, high: for "llama3": wavelengths longer than context / low are divided, shorter than context / high are kept.
      context: for "llama3": positions of the first training.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"Rotary scaling {self.kind!r} is not one of linear, llama3.")
        if self.factor < 1 or not 0 < self.low < self.high:
            raise ValueError(
                f"Rotary scaling needs factor >= 1 and 0 < low < high, not factor={self.factor}, low={self.low}, "
                f"high={self.high}."
            )


def rope_tables(
    positions: jax.Array, head_dim: int, base: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [..., 1, C/2] in float32 for integer positions [...] (RoFormer, arXiv 2104.09864)."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequency = frequency / rope_divisors(frequency, scaling)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope_divisors(frequency: jax.Array, scaling: RopeScaling) -> jax.Array:
    """What each frequency [C/2] is divided by; numpy's arrays give numpy's.

    For "llama3" the scaled frequency is (1 - t) · f / factor + t · f, with t rising from 0 at the wavelength context / low
    to 1 at context / high, linearly in the frequency.
    """
    if scaling.kind == "linear":
        return scaling.factor + 0.0 * frequency
    turns = scaling.context * frequency / (2 * math.pi)  # that a pair makes over the first training's context
    t = ((turns - scaling.low) / (scaling.high - scaling.low)).clip(0.0, 1.0)
    return 1.0 / ((1.0 - t) / scaling.factor + t)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates feature pairs (i, i + C/2) of x [..., heads, C]: the half-split layout of Hugging Face's Llama weights."""
    cos, sin = rope
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
