"""Looks for what would stop a run, in seconds, before hours are spent.

    python -m meal_jax.doctor --config=configs/reddit.py:summary,faithful --workdir=runs/reddit

takes the flags of `meal_jax.main`, those of several processes too; every process is started as the run would be, and
process 0 prints what all have found. Nothing is downloaded, and nothing written but a small file in the workdir (in the
directory above it, if it is not there yet), which is removed again.

Each line is `ok`, `warn` (the run starts; read it) or `fail`, with what to do about it. The exit status is 1 on a fail.
What only the whole run can tell is not checked: whether every row of the data can be read, whether the step fits the
devices' memory with what XLA needs beside the estimate.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from meal_jax.runtime import distributed

HUB_SECONDS = 5.0  # that the hub may take to answer
DEVICE_SECONDS = 180.0  # that a first program on all devices may take, its compilation included
GIB = 2**30
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")
ACCELERATORS = {"/dev/nvidia0": "an NVIDIA GPU", "/dev/accel0": "a TPU", "/dev/vfio/0": "a TPU"}


class Finding(NamedTuple):
    """One line of the report: ok, warn or fail; of what; what was found; what to do."""

    status: str
    name: str
    found: str
    advice: str = ""


ok = functools.partial(Finding, "ok")
warn = functools.partial(Finding, "warn")
fail = functools.partial(Finding, "fail")


def examine(config: Any, workdir: str) -> list[Finding]:
    """All checks, on all processes alike; returns what all of them found."""
    findings = [*versions(), settings(config)]
    if findings[-1].status == "ok":  # else its fields cannot be relied on
        findings += [*weights(config), *data(config), *place(config, workdir)]
    # Past here every process goes, whatever it found: the others wait for it.
    found, mesh = devices(config)
    findings += found
    try:
        findings += within(DEVICE_SECONDS, collective)
        if mesh is not None:
            findings += within(DEVICE_SECONDS, functools.partial(small_step, mesh))
    except TimeoutError:
        advice = (
            "Some device or host does not take part. Was the command started on every host? Are the ports between hosts "
            "open? Is another program on the devices? With NVIDIA GPUs, NCCL_DEBUG=INFO says more."
        )
        report([*findings, fail("collective", f"no answer from all devices in {DEVICE_SECONDS:.0f} s", advice)])
        os._exit(1)  # a thread waits for the devices, and would keep this process
    return gathered([*findings, *shared(workdir)])


# ------------------------------------------------------------------------------------------------ software and settings
def versions() -> Iterator[Finding]:
    """Python and the packages, against what the package asks for."""
    from packaging.requirements import Requirement

    installed = {name: _version(name) for name in (*SHOWN, *PLUGINS)}
    shown = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    wrong = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its sources
        for asked in map(Requirement, importlib.metadata.requires("meal_jax") or ()):
            if asked.marker is None or asked.marker.evaluate({"extra": ""}):
                version = _version(asked.name)
                if version is None or not asked.specifier.contains(version, prereleases=True):
                    wrong.append(f"{asked.name} is {version or 'not installed'}, asked for is {asked.specifier}")
    yield ok("versions", f"Python {sys.version.split()[0]}, {shown}")
    if wrong:
        yield warn("versions", "; ".join(wrong), "Run `pip install -e .` again, with the extra of this machine.")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def settings(config: Any) -> Finding:
    """The configuration's own checks, for every method that it trains."""
    from meal_jax import methods
    from meal_jax.config import check

    try:
        check(config)
        if config.stage == "align":
            for name in (config.method, *config.beside):
                check(methods.configure(name, config))
    except (ValueError, FileNotFoundError) as error:
        return fail("config", f"{error}", "Change the field in the file of --config, or by --config.name=value.")
    what = "sft" if config.stage == "sft" else ", ".join(dict.fromkeys((config.method, *config.beside)))
    return ok("config", f"{config.task}, {what}, {config.steps} steps of {config.batch_size} prompts")


# ------------------------------------------------------------------------------------------------ what a run reads
def weights(config: Any) -> Iterator[Finding]:
    """The policy's weights and those of every reward model and judge: local, cached, or on the hub for this token."""
    from meal_jax.rewards import formats, linear_heads, sources

    if not config.policy.source:
        yield ok("policy", "drawn at random")
    else:
        yield reach("policy", str(config.policy.source), _decoder)
    if config.stage == "sft":
        return
    for objective, source in zip(config.objectives, map(sources.parse, config.reward.sources), strict=False):
        if source.kind == "model":
            preset = formats.PRESETS.get(source.value)
            yield reach(f"reward {objective}", source.directory or preset.source, _classifier)
        elif source.kind == "judge" and config.reward.judge:
            yield reach(f"reward {objective}", str(config.reward.judge), _decoder)
        else:
            yield ok(f"reward {objective}", source.kind if source.kind == "heads" else f"{source.kind}:{source.value}")
    if config.policy.source and sources.own(config):
        try:
            linear_heads.load(config.reward.heads)
        except (FileNotFoundError, ValueError) as error:
            yield fail("heads", f"{error}", "See above.")


def reach(name: str, source: str, read: Callable[[Path], str]) -> Finding:
    """Whether a directory, a GGUF file or a hub id can be read.

    Args:
      name: of the line.
      source: as in `config.policy.source`.
      read: (directory) → what is in it, in words; raises ValueError or FileNotFoundError where it does not do.
    """
    from meal_jax.tasks.language import need_weights

    path = Path(source).expanduser()
    if path.is_file():
        return ok(name, f"{source}, {path.stat().st_size / GIB:.2f} GiB")
    directory = path if path.is_dir() else None
    if directory is None:
        try:
            need_weights(source)  # tells paths from hub ids
        except FileNotFoundError as error:
            return fail(name, f"there is no {source}", f"{error}")
        directory = cached(source)
    if directory is None:
        return on_hub(name, source)
    try:
        return ok(name, f"{source}: {read(directory)}{'' if path.is_dir() else ', in the cache'}")
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        if path.is_dir():
            return fail(name, f"{error}", "Complete the directory, or name another.")
        return on_hub(name, source, f" (the copy in the cache is not whole: {error})")


def _decoder(directory: Path) -> str:
    from meal_jax.models import hf

    c = hf.load_config(directory)
    return f"{c.layers} layers of {c.width}, {_files(directory)}"


def _classifier(directory: Path) -> str:
    from meal_jax.models.storage import read_json

    entries = read_json(directory / "config.json")
    return f"{entries.get('model_type')}, {_files(directory)}"


def _files(directory: Path) -> str:
    from meal_jax.models.storage import INDEX, SINGLE, weight_files

    files = weight_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}.")
    return f"{sum((directory / file).stat().st_size for file in files) / GIB:.2f} GiB of weights"


def cached(repository: str) -> Path | None:
    """The snapshot of a hub id in this machine's cache, None if there is none; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, "config.json")
    except ValueError:  # not of a hub id's form
        return None
    return Path(found).parent if isinstance(found, str) else None


def on_hub(name: str, repository: str, also: str = "") -> Finding:
    """Whether the hub would give a repository's files to this token."""
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    token = "with the token that is set" if get_token() else "without a token"
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=HUB_SECONDS)
    except errors.GatedRepoError:
        advice = (
            f"Accept its licence at https://huggingface.co/{repository}, then `hf auth login` or HF_TOKEN with a token of "
            "that account, on every host."
        )
        return fail(name, f"{repository} is gated and refused {token}{also}", advice)
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        reason = type(error).__name__
        return fail(
            name, f"{repository} is not on the hub {token} ({reason}){also}", "Correct the id, or log in to see it."
        )
    except Exception as error:  # of the network, of many types
        reason = " ".join(str(error).split())[:120]
        advice = "Connect this host, or download the model elsewhere and give its directory."
        return fail(name, f"{repository} is not in the cache, and the hub does not answer ({reason}){also}", advice)
    return ok(name, f"{repository}, on the hub {token}; each host will download it{also}")


def data(config: Any) -> Iterator[Finding]:
    """Whether the prompts are there."""
    from meal_jax.data import prepared

    at = config.data.posts or config.data.path
    if not at:
        yield ok("data", "made by the benchmark")
        return
    path = Path(at).expanduser()
    dataset = {"assistant": "hh_rlhf", "reddit": "summarize_from_feedback"}.get(config.task)
    advice = "Correct config.data.posts." if config.data.posts else "Correct config.data.path."
    if dataset and not config.data.posts:
        advice = (
            f"`python -m meal_jax.data.prepare --dataset={dataset}` writes data/{dataset}; or correct config.data.path."
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        yield fail("data", f"there is nothing at {path}", advice)
    elif path.is_dir():
        parts = sorted(part for part in (path, *path.iterdir()) if prepared.directory(part))
        names = sorted(part.name for part in path.iterdir())
        kind = "prepared" if parts else "files"
        yield ok("data", f"{path}, {kind}: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    else:
        yield ok("data", f"{path}, {path.stat().st_size / 2**20:.1f} MiB")


# ------------------------------------------------------------------------------------------------ where it writes
def place(config: Any, workdir: str) -> Iterator[Finding]:
    """Whether the workdir can be written to, and has room."""
    if "://" in workdir:
        advice = "Mount the bucket on every host (gcsfuse BUCKET DIRECTORY, or mount-s3) and give the directory."
        yield fail("workdir", f"{workdir} is a URL, and a run writes to a directory", advice)
        return
    path = Path(workdir).expanduser().absolute()
    there = existing(path)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield fail("workdir", f"{there} cannot be written to ({error})", "Give another --workdir, or make room there.")
        return
    begun = [int(step.name) for step in (path / "checkpoints").glob("*") if step.name.isdigit()]
    state = f"goes on from step {max(begun)}" if begun else "a new run"
    room = f"{there}: {free / GIB:.1f} GiB free; {state}"
    if free < GIB:
        yield fail("workdir", room, "Checkpoints need room: free some, or give another --workdir.")
    elif free < 10 * GIB:
        yield warn(
            "workdir",
            room,
            f"Of adapters a checkpoint is small, of all weights large; {config.checkpoint.keep + 1} are held.",
        )
    else:
        yield ok("workdir", room)


def existing(path: Path) -> Path:
    """The directory itself, or the first above it that exists."""
    return next(above for above in (path, *path.parents) if above.is_dir())


def shared(workdir: str) -> Iterator[Finding]:
    """With several processes: whether all see the same workdir."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1 or "://" in workdir:
        return
    there = existing(Path(workdir).expanduser().absolute())
    with contextlib.ExitStack() as stack:

        def write() -> str:
            return stack.enter_context(tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-")).name

        try:
            sees = Path(distributed.from_first(write)).exists()
        except (OSError, RuntimeError):  # it is in process 0's findings
            return
        blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.array(sees)))).tolist()
    if blind:
        advice = "Give a --workdir on a file system that all hosts share: NFS, Filestore, a mounted bucket."
        yield fail("workdir", f"processes {blind} do not see the {there} of process 0", advice)
    else:
        yield ok("workdir", "the same for all processes")


# ------------------------------------------------------------------------------------------------ devices
def devices(config: Any) -> tuple[list[Finding], Any]:
    """What the processes see, and the configuration's mesh over it (None if it does not fit)."""
    import jax

    from meal_jax.runtime import sharding

    all_of_them, here = jax.devices(), jax.local_devices()
    kind, count, processes = here[0].device_kind, len(all_of_them), jax.process_count()
    hosts = f" of {processes} processes, {len(here)} each" if processes > 1 else ""
    findings = [ok("devices", f"{count} × {kind} ({jax.default_backend()}){hosts}")]
    each = collections.Counter(device.process_index for device in all_of_them)
    if len(set(each.values())) > 1:
        findings.append(
            fail("devices", f"by process: {dict(sorted(each.items()))}", "Every process must have as many.")
        )
    hardware = {what for file, what in ACCELERATORS.items() if Path(file).exists()}
    if jax.default_backend() == "cpu" and hardware and os.environ.get("JAX_PLATFORMS") != "cpu":
        advice = (
            "Install JAX for it, `pip install -e '.[cuda]'` or '.[tpu]', and see that its driver runs and no other program "
            "holds it; JAX_PLATFORMS=cpu if the CPU is meant."
        )
        findings.append(
            fail("devices", f"this host has {' and '.join(sorted(hardware))}, and JAX sees the CPU only", advice)
        )
    limits = [stats["bytes_limit"] for device in here if "bytes_limit" in (stats := device.memory_stats() or {})]
    if limits:
        findings.append(ok("memory", f"{min(limits) / GIB:.1f} GiB a device"))
    h = config.mesh
    try:
        mesh = sharding.make_mesh(h.data, h.fsdp, h.tensor, all_of_them, h.slices)
        half = config.stage != "sft"
        sharding.check_batch(mesh, config.batch_size // (1 + half), f"{'half of ' * half}config.batch_size")
        sharding.check_batch(mesh, config.eval.batch_size, "config.eval.batch_size")
    except ValueError as error:
        advice = "Set config.mesh.data, fsdp and tensor for these devices, and batch sizes that data × fsdp divides."
        return [*findings, fail("mesh", f"{error}", advice)], None
    return [*findings, ok("mesh", " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items()))], mesh


def collective() -> list[Finding]:
    """A sum over all devices of all processes, timed the second time."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    count, length = jax.device_count(), 2**20
    mesh = Mesh(np.array(jax.devices()), ("all",))
    rows = lambda at: np.arange(count, dtype=np.float32)[at[0]][:, None] * np.ones(length, np.float32)  # noqa: E731
    x = jax.make_array_from_callback((count, length), NamedSharding(mesh, P("all")), rows)
    total = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, P()))
    jax.block_until_ready(total(x))
    began = time.perf_counter()
    found = jax.block_until_ready(total(x))
    seconds = time.perf_counter() - began
    expected = count * (count - 1) / 2
    if not np.all(np.asarray(found.addressable_data(0)) == expected):
        return [
            fail("collective", f"a sum over {count} devices is not {expected:.0f}", "A device or a link is faulty.")
        ]
    return [ok("collective", f"sum of 4 MiB over {count} devices: {seconds * 1e3:.2f} ms")]


def small_step(mesh: Any) -> list[Finding]:
    """A step of the method in miniature on the run's mesh: rollout, scoring, both halves' updates, sharded by its rules."""
    import jax
    import jax.numpy as jnp

    from meal_jax import testing
    from meal_jax.meal import step as meal
    from meal_jax.runtime import sharding

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
        compiled = jax.jit(step, out_shardings=sharding.replicated(mesh))
        began = time.perf_counter()
        loss = float(compiled())
        compiling = time.perf_counter() - began
        began = time.perf_counter()
        again = float(compiled())
        seconds = time.perf_counter() - began
    if not math.isfinite(loss) or loss != again:
        return [
            fail("step", f"a small step's loss was {loss}, then {again}", "A device computes wrongly: try another.")
        ]
    return [ok("step", f"a small step on the mesh: {seconds * 1e3:.1f} ms, after {compiling:.1f} s of compilation")]


def within(seconds: float, function: Callable[[], list[Finding]]) -> list[Finding]:
    """What the function returns or raises; TimeoutError if that takes longer, while it goes on in a thread."""
    result: Future = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(timeout=seconds)


# ------------------------------------------------------------------------------------------------ the report
def gathered(findings: list[Finding]) -> list[Finding]:
    """The findings of all processes, on all: process 0's, and what others found that it did not."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return findings
    mine = json.dumps(findings).encode()
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(mine))))
    padded = np.zeros(1 << int(max(sizes)).bit_length(), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    first, *others = ([Finding(*f) for f in json.loads(row[:n].tobytes())] for row, n in zip(rows, sizes, strict=True))
    elsewhere: dict[Finding, list[int]] = collections.defaultdict(list)
    for number, found in enumerate(others, 1):
        for finding in found:
            if finding.status != "ok" and finding not in first:
                elsewhere[finding].append(number)
    return first + [f._replace(found=f"{f.found} (processes {numbers})") for f, numbers in elsewhere.items()]


def report(findings: list[Finding]) -> None:
    """Prints the list."""
    from rich.console import Console
    from rich.text import Text

    console, styles = Console(soft_wrap=True), {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max(len(finding.name) for finding in findings)
    for status, name, found, advice in findings:
        console.print(Text.assemble((f"{status:4}", styles[status]), f"  {name:{width}}  {found}"))
        if advice:
            console.print(Text.assemble(" " * (width + 8), ("→ ", styles[status]), advice))
    count = collections.Counter(finding.status for finding in findings)
    console.print(f"\n{count['fail']} failed, {count['warn']} to look at, {count['ok']} fine")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    logging.set_verbosity(logging.WARNING)
    config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
    if "policy" not in config or "mesh" not in config:
        raise SystemExit("error: this --config is not of meal_jax.main, whose runs the doctor knows.")
    with distributed.end_together():
        try:
            distributed.start_as_flags_say()
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"fail  processes  {error}") from None
        findings = examine(config, workdir)
        if distributed.is_first():
            report(findings)
    if any(finding.status == "fail" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    from meal_jax.main import parse

    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
