"""Compiler options for platforms that need them, and what is said before the compiler is waited for."""

from __future__ import annotations

import functools

import jax

from meal_jax import console
from meal_jax.runtime import distributed

# LoRA's (x A) B, its transposes and tangents are chains of small products, and the TPU's compiler tries to fuse products into
# products. With libtpu 0.0.42.1 the update of an adapted model ended, after minutes of search, in a stack overflow of the
# compiler (FusedSpatialMajorConvolution::CalculateClassicConvWindowsCost). Without these fusions it compiles.
TPU = {
    "xla_tpu_dot_dot_fusion": False,
    "xla_tpu_dot_dot_fusion_duplicated": False,
    "xla_tpu_enable_multi_level_input_dot_dot_fusion": False,
    "xla_tpu_enable_multi_level_output_dot_dot_fusion": False,
    "xla_tpu_nested_dot_fusion": False,
    "xla_tpu_enable_multi_level_nested_dot_fusion": False,
}


def options(place: jax.sharding.Sharding) -> dict[str, bool] | None:
    """`compiler_options` of `jax.jit` for a program on the devices of a sharding; None for the compiler's defaults."""
    return TPU if next(iter(place.device_set)).platform == "tpu" else None


@functools.cache  # once, however many methods a run trains
def explain() -> None:
    """Says why the first step takes longest."""
    directory = jax.config.jax_compilation_cache_dir
    kept = (
        f" They are kept in {directory}, and the next run of this configuration reads them there." if directory else ""
    )
    if distributed.is_first():
        console.say(
            "The first step takes longest: XLA first compiles the evaluation and the training step, minutes for large "
            f"models.{kept}"
        )
