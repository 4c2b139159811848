"""How much of a LoRA update is lost when it is merged into weights of few digits.

With W a kernel, Δ = (alpha / R) A B its update and round(·) the storage type's rounding, the share lost is
‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖, Frobenius norms. A small update lies below the last digit of bfloat16's eight bits and is lost
in large part.

Letters: L layers, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from meal_jax.hf.weight_names import weights
from meal_jax.models.lora import ADAPTER_LEAVES, update
from meal_jax.models.transformer import TransformerConfig

LARGE = 0.1  # share lost above which float32 is advised
DTYPES = ("float32", "bfloat16")


class Rounding(NamedTuple):
    """What merging lost.

    Attributes:
      dtype: storage type of the merged weights.
      overall: share lost over all tensors together.
      shares: share lost by Hugging Face tensor name; 0 where the update is 0.
    """

    dtype: str
    overall: float
    shares: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor that lost most, and its share."""
        return max(self.shares.items(), key=lambda item: item[1])

    def say(self) -> str:
        """A sentence, with the advice where much was lost."""
        name, share = self.worst
        text = (
            f"Rounding the merged weights to {self.dtype} loses {self.overall:.2%} of the LoRA update's norm, at most "
            f"{share:.2%} ({name})."
        )
        advice = f" That is more than {LARGE:.0%}: export with --dtype=float32, or --kind=adapter."
        return text + (advice if self.overall > LARGE and self.dtype != "float32" else "")


def measure(flat: Mapping[str, Any], config: TransformerConfig, dtype: str) -> Rounding | None:
    """The share that merging into `dtype` loses; None where there are no adapters. One layer at a time is in memory.

    Args:
      flat: path → parameter, with "transformer/layers/…/kernel" [L, D, F] and beside it lora_a [L, D, R], lora_b [L, R, F].
      config: of the decoder, with `lora`.
      dtype: one of DTYPES.
    """
    shares, lost, whole = {}, 0.0, 0.0
    for weight in weights(config):
        layer = f"transformer/{weight.path.removesuffix('/kernel')}"
        factors = [f"{layer}/{leaf}" for leaf in ADAPTER_LEAVES]
        if factors[0] not in flat:
            continue
        for i, name in enumerate(weight.names(config.layers)):
            delta = update(*(flat[path][i] for path in factors), config.lora)
            total = jnp.asarray(flat[f"{layer}/kernel"][i], jnp.float32) + delta
            error = total.astype(dtype).astype(jnp.float32) - total
            squares = [float(jnp.sum(jnp.square(x))) for x in (error, delta)]
            shares[name] = math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0
            lost, whole = lost + (squares[0] if squares[1] else 0.0), whole + squares[1]
    return Rounding(dtype, math.sqrt(lost / whole) if whole else 0.0, shares) if shares else None
