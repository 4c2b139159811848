"""Devices: what the processes see, the mesh over it, the memory, and whether they compute and talk to each other."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from meal_jax import build, cost, methods, testing
from meal_jax.aot.memory import estimate, peak
from meal_jax.doctor.finding import GIB, Finding, fail, ok, unknown, warn
from meal_jax.hf import pretrained
from meal_jax.meal import step as meal
from meal_jax.models.policy import inserted
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.weights import RolloutWeights
from meal_jax.runtime import sharding

SUMMED = 2**20  # numbers of each device
ACCELERATORS = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/accel0": "a TPU", "/dev/vfio/0": "a TPU"}


def present() -> Iterator[Finding]:
    """The devices of all processes, and whether they are the ones that this host has."""
    local = jax.local_devices()
    processes = jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    yield ok("devices", f"{jax.device_count()} × {local[0].device_kind} ({jax.default_backend()}){of}")
    each = collections.Counter(device.process_index for device in jax.devices())
    if len(set(each.values())) > 1:
        yield fail("devices", f"number by process: {dict(sorted(each.items()))}", "Every process must have as many.")
    hardware = {what for file, what in ACCELERATORS.items() if Path(file).exists()}
    if jax.default_backend() == "cpu" and hardware and os.environ.get("JAX_PLATFORMS") != "cpu":
        advice = (
            "Install JAX for it, `pip install -e '.[cuda]'` or '.[tpu]', and see that its driver runs and no other program "
            "holds it; JAX_PLATFORMS=cpu if the CPU is meant."
        )
        yield fail("devices", f"this host has {' and '.join(sorted(hardware))}, and JAX sees the CPU only", advice)


def laid_out(config: Any) -> tuple[list[Finding], Mesh | None]:
    """The configuration's mesh over the devices, and None in its place if they or the batches do not fit it."""
    try:
        mesh = build.mesh_of(config)
    except ValueError as error:
        advice = "Set config.mesh.data, fsdp and tensor for these devices, and batch sizes that data × fsdp divides."
        return [fail("mesh", f"{error}", advice)], None
    findings = [ok("mesh", " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))]
    if mesh.shape["fsdp"] > 1 and not config.rollout.gather:
        what = f"weights are split over fsdp {mesh.shape['fsdp']}, and decoding gathers them at every token"
        advice = "config.rollout.gather=True gathers them once a rollout where a device has room; see docs/scaling.md."
        findings.append(warn("rollout", what, advice))
    return findings + list(kernels(config, jax.default_backend())), mesh


def kernels(config: Any, backend: str) -> Iterator[Finding]:
    """What a GPU could do faster, and what only a GPU can do."""
    r = config.rollout
    if backend == "gpu" and not (r.unstack_layers and r.attention == "triton"):
        yield warn(
            "rollout",
            "a GPU copies each layer's weights out of their stack, and attends in a dozen programs, at every token",
            "config.rollout.unstack_layers=True and config.rollout.attention=triton, where there is room for a second copy "
            "of the weights: 2.7 times as fast for Llama-2-7b on an H100, see docs/performance.md.",
        )
    if backend != "gpu" and r.attention == "triton":
        yield warn("rollout", f"config.rollout.attention='triton' is interpreted on {backend}, slowly", "Take 'plain'.")
    if backend != "gpu" and config.policy.attention == "cudnn":
        yield fail("attention", f"config.policy.attention='cudnn' does not run on {backend}", "Take 'plain'.")


def memory(config: Any, mesh: Mesh, model: TransformerConfig | None) -> Iterator[Finding]:
    """The devices' memory against an estimate of what a step holds; and whether the mesh divides the weights.

    Args:
      config: the run's.
      mesh: its devices.
      model: the policy's sizes; None if they are not known.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    limit = min((s["bytes_limit"] for s in stats if "bytes_limit" in s), default=None)
    alone, capacity, beside = 1, "a device has", "reward models beside"
    if limit is None:  # the CPU's devices share the host's
        limit, alone, capacity = _host_memory(), jax.local_device_count(), "this host has free"
        beside = "reward models beside, and 1 to 2 for the process and its compiler"
    capacity = f"{capacity} {limit / GIB:.1f} GiB" if limit else "what there is, is not known"
    if model is None:
        known = not config.policy.source  # drawn at random, and small
        yield (
            ok("memory", capacity)
            if known
            else unknown("memory", f"{capacity}; a step's need is unknown: the policy was not read")
        )
        return
    try:
        paths = {f"policy/transformer/{path}": shape for path, shape in pretrained.param_shapes(model).items()}
        sharding.shardings(paths, mesh)
    except ValueError as error:
        yield fail("mesh", f"{error}", "Choose other sizes of config.mesh.")
        return
    m, kind = methods.configure(config.method, config).meal, config.conditioning.kind
    run = cost.Run(
        model, config.batch_size, m.candidates, config.data.prompt_length, config.sampling.max_new,
        slots=0 if inserted(kind) == "none" else config.conditioning.slots,
        prompt_per_candidate=kind.startswith("adapter") and config.conditioning.prompt == "preference",
        objectives=len(config.objectives), kl=m.beta > 0 or methods.get(config.method).keeps_reference, net=m.net,
        hypergradient=m.hypergradient, reuse_virtual=m.reuse_virtual, meta_fraction=m.meta_fraction,
        chunk=config.policy.chunk,
        rollout_weights=RolloutWeights(**config.rollout),
        parts=cost.step_parts(meal.Micro(**config.micro), config.batch_size),
    )  # fmt: skip
    # A policy that is trained whole is no longer the base that a KL reads.
    parts = estimate(run, dict(mesh.shape), base_copies=2 if run.kl and model.lora is None else 1)
    resident = alone * sum(parts[kind] for kind in ("weights", "trained", "optimizer"))
    needed = alone * peak(parts)
    summary = f"{capacity}; a step needs about {needed / GIB:.1f}, {resident / GIB:.1f} of it weights and optimizer ({beside})"
    if limit and resident > limit:
        advice = (
            "More devices for config.mesh.fsdp or tensor, which split the weights; config.policy.param_dtype=bfloat16; "
            "adapters (config.policy.lora_rank) in place of all weights; or a smaller model."
        )
        yield fail("memory", summary, advice)
    elif config.stage == "sft":  # no candidates, no rollout, no second level
        held = f"{capacity}; weights and optimizer take {resident / GIB:.1f}, the rest of a step of fine-tuning"
        yield unknown("memory", f"{held} is not estimated")
    elif limit and needed > 0.9 * limit:
        advice = (
            "config.policy.remat=full, a small config.policy.chunk, a small config.micro.gradient and micro.rollout, fewer "
            "prompts or candidates a step, no config.rollout.gather or apart, or more devices."
        )
        yield warn("memory", summary, advice)
    else:
        yield ok("memory", summary)


def _host_memory() -> int | None:
    """Bytes that are free on this host; None where the system does not tell as Linux does."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return None


def collective() -> list[Finding]:
    """A sum over all devices of all processes, timed the second time."""
    return compile_collective()()


def compile_collective() -> Callable[[], list[Finding]]:
    """`collective` in two parts, for a limit of time on the second alone: a slow compiler is no device that hangs."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    split = NamedSharding(mesh, P("all"))
    x = jax.ShapeDtypeStruct((jax.device_count(), SUMMED), jnp.float32, sharding=split)
    total = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, P())).lower(x).compile()
    return functools.partial(_sum, total, split)


def _sum(total: Callable, split: NamedSharding) -> list[Finding]:
    count = jax.device_count()

    def rows(index: tuple[slice, ...]) -> np.ndarray:
        return np.arange(count, dtype=np.float32)[index[0]][:, None] * np.ones(SUMMED, np.float32)

    x = jax.make_array_from_callback((count, SUMMED), split, rows)
    jax.block_until_ready(total(x))
    began = time.perf_counter()
    result = jax.block_until_ready(total(x))
    seconds = time.perf_counter() - began
    expected = count * (count - 1) / 2
    if not np.all(np.asarray(result.addressable_data(0)) == expected):
        return [
            fail("collective", f"a sum over {count} devices is not {expected:.0f}", "A device or a link is faulty.")
        ]
    return [ok("collective", f"sum of 4 MiB over {count} devices: {seconds * 1e3:.2f} ms")]


def small_step(mesh: Any) -> list[Finding]:
    """A step of the method in miniature on the run's mesh: rollout, scoring, both halves' updates, sharded by its rules."""
    return compile_small_step(mesh)()


def compile_small_step(mesh: Any) -> Callable[[], list[Finding]]:
    """`small_step` in two parts, as `compile_collective`."""
    rows, fsdp, tensor = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["fsdp"], mesh.shape["tensor"]
    vocabulary = testing.VOCABULARY * tensor
    sizes = {
        "layers": 1, "vocab_size": vocabulary, "width": math.lcm(16, fsdp), "heads": 4 * tensor, "kv_heads": 2 * tensor,
        "hidden": 24 * tensor,
    }  # fmt: skip

    def step():
        # Without the weight-net: its second derivatives take longer to compile than all the rest.
        t = testing.tiny(batch=2 * rows, candidates=2, max_new=4, net=False, model=sizes)
        setup = dataclasses.replace(t.setup, forbidden=jnp.arange(vocabulary) == testing.PAD)
        state = jax.lax.with_sharding_constraint(t.state, sharding.shardings(t.state, mesh))
        batch = jax.lax.with_sharding_constraint(
            t.batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), t.batch)
        )
        _, metrics = meal.step(setup, state, t.frozen, batch)
        return metrics["loss/base"]

    with jax.set_mesh(mesh):
        began = time.perf_counter()
        compiled = jax.jit(step, out_shardings=sharding.replicated(mesh)).lower().compile()
        compiling = time.perf_counter() - began
    return functools.partial(_step_twice, compiled, compiling)


def _step_twice(compiled: Callable, compiling: float) -> list[Finding]:
    loss = float(compiled())
    began = time.perf_counter()
    again = float(compiled())
    seconds = time.perf_counter() - began
    if not math.isfinite(loss) or loss != again:
        return [
            fail("step", f"a small step's loss was {loss}, then {again}", "A device computes wrongly: try another.")
        ]
    return [ok("step", f"a small step on the mesh: {seconds * 1e3:.1f} ms, after {compiling:.1f} s of compilation")]
