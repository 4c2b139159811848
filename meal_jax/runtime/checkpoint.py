"""Checkpoints of one state pytree: written in the background, whole or not at all, and verified bit by bit when read.

A directory holds one folder a step, `<directory>/<step>`. Orbax writes it under a temporary name and renames it when it
is complete, so a process killed at any moment leaves the checkpoints before it intact. Beside the arrays a checkpoint
keeps a record: every leaf's path, type, shape and digest, and the caller's `meta`. The record does three things that
the array files alone don't: a state of another config is refused with the leaves that differ, a type is never converted
in silence, and damage inside an array's bytes, which the file format doesn't notice, is found.

All functions are called by every process, at the same steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from meal_jax.runtime import distributed

PyTree = Any
UNFINISHED = "*.orbax-checkpoint-tmp*"


class MismatchError(ValueError):
    """A checkpoint is readable, but it holds another state than the one asked for."""


class CheckpointError(RuntimeError, OSError):
    """Checkpoints cannot be written, or none can be read: a matter of disks, which people can act on."""


@dataclasses.dataclass
class Checkpointer:
    """Handle on a directory of checkpoints; made by `open_checkpoints`.

    Attributes:
      directory: absolute path; a bucket's URL also works where its file system is installed.
      keep: how many of the newest checkpoints stay on disk; None opens for reading: nothing is written or moved.
      pending: the save that runs in the background, if any.
    """

    directory: ocp.path.Path
    keep: int | None
    pending: ocp.AsyncResponse | None = None


def open_checkpoints(directory: str, keep: int | None) -> Checkpointer:
    """Opens a directory, creating it if needed, and removes what a killed process left unfinished.

    Args:
      directory: of this run alone.
      keep: see Checkpointer. With at least 2 there is one to fall back on if the newest is damaged.

    Returns:
      A Checkpointer; `close` it, or the last save may be lost.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep={keep}: keep at least 1 checkpoint, or None to open the directory for reading.")
    directory = ocp.path.Path(directory).expanduser().resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file, and checkpoints need a directory there: move it away.")
    if keep is not None and jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(UNFINISHED):
            leftover.rmtree()
    return Checkpointer(directory, keep)


def save(checkpointer: Checkpointer, step: int, state: PyTree, meta: dict[str, Any]) -> None:
    """Starts writing a checkpoint and returns once the state is copied, so that the caller may donate it.

    Waits for the save before it, and raises its error. A step that is already on disk is left as it is.

    Args:
      checkpointer: open for writing.
      step: steps done; names the checkpoint.
      state: pytree of jax.Arrays, typed keys included, all on the same devices.
      meta: small, JSON (config, position in the data).

    Raises:
      ValueError: a leaf that could not come back exactly as it is.
    """
    if checkpointer.keep is None:
        raise ValueError(f"{checkpointer.directory} is open for reading (keep=None); to save, open it with keep >= 1.")
    wait(checkpointer)
    path = checkpointer.directory / str(step)
    if distributed.from_first(path.exists):
        return
    _check_exact(state)
    digests = _digests(state)
    leaves = {leaf: [kind, digests[leaf]] for leaf, kind in _describe(state).items()}
    text = json.dumps({"meta": meta, "leaves": leaves})
    context = ocp.Context()
    # Otherwise an unwritable directory is reported minutes later, by a thread that keeps the process from ending.
    context.async_options.create_directories_asynchronously = False
    with context:
        record = {"record": text, "crc32": zlib.crc32(text.encode())}
        checkpointer.pending = ocp.save_async(path, state, custom_metadata=record)


def wait(checkpointer: Checkpointer) -> None:
    """Blocks until the background save is on disk, raises its error if it failed, and drops the oldest checkpoints."""
    if checkpointer.pending is None:
        return
    pending, checkpointer.pending = checkpointer.pending, None
    try:
        pending.result()
    except Exception as error:
        raise CheckpointError(f"Saving a checkpoint in {checkpointer.directory} failed: {error}. Disk full?") from error
    if jax.process_index() == 0:
        for step in steps(checkpointer)[: -checkpointer.keep]:
            (checkpointer.directory / str(step)).rmtree()


def close(checkpointer: Checkpointer) -> None:
    """Finishes the last save; its error is raised here at the latest."""
    wait(checkpointer)


def steps(checkpointer: Checkpointer) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    directory = checkpointer.directory
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.exists() else []


def newest_meta(directory: str | os.PathLike) -> dict[str, Any]:
    """What `save` was given as `meta` for the newest checkpoint of a directory that says it; {} if none does."""
    opened = Checkpointer(ocp.path.Path(directory).expanduser().resolve(), None)
    for step in reversed(steps(opened) if opened.directory.is_dir() else ()):
        with contextlib.suppress(Exception):  # damage shows as whatever the reader stumbles on
            return _stored(opened.directory / str(step))["meta"]
    return {}


def restore_latest(checkpointer: Checkpointer, abstract_state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole.

    A damaged one is skipped with a warning; once an older one has been read, it is renamed `<step>.damaged`, so that
    the run can save that step again.

    Args:
      checkpointer: open for reading or writing.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings. The mesh need not be the one that saved.

    Returns:
      (step, state, meta), the leaves bit for bit as they were saved and committed to exactly the shardings asked for;
      None if the directory holds no checkpoint.

    Raises:
      MismatchError: the checkpoint is of another state (other config); says which leaves differ.
      RuntimeError: there are checkpoints and none can be read.
    """
    wait(checkpointer)
    _check_exact(abstract_state)
    damaged = {}
    for step in reversed(distributed.from_first(lambda: steps(checkpointer))):
        path = checkpointer.directory / str(step)
        try:
            state, meta = _load(path, abstract_state)
        except (MismatchError, MemoryError):
            raise
        except Exception as error:  # damage shows as whatever the reader stumbles on: many types, no common base
            damaged[step] = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            logging.warning("Checkpoint %s is damaged and is skipped. %s", path, damaged[step])
            continue
        if checkpointer.keep is not None:
            _set_aside(checkpointer, damaged)
        return step, state, meta
    if damaged:
        reasons = "\n".join(f"  {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"None of the checkpoints in {checkpointer.directory} can be read:\n{reasons}\n"
            "If the reason is not a lack of memory or of access, move the directory away to start from the beginning."
        )
    return None


def _load(path: ocp.path.Path, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Reads and verifies; fails on all processes or on none, and each knows after each part that all came so far."""
    record = _together(lambda: _read_record(path, abstract_state))
    state = _together(lambda: _read_arrays(path, abstract_state))
    digests = _digests(state)  # computed by all together, so the same on all
    changed = [leaf for leaf, (_, digest) in record["leaves"].items() if digests[leaf] != digest]
    if changed:
        raise ValueError(f"The bytes of {', '.join(changed)} are not those that were saved.")
    return state, record["meta"]


def _together(read: Callable[[], Any]) -> Any:
    result, error = None, None
    try:
        result = read()
    except Exception as failure:  # the others must hear of it, whatever it is
        error = failure
    distributed.agree(error, "Reading it")
    return result


def _read_record(path: ocp.path.Path, abstract_state: PyTree) -> dict[str, Any]:
    record = _stored(path)
    _check_match(path, {leaf: kind for leaf, (kind, _) in record["leaves"].items()}, _describe(abstract_state))
    return record


def _stored(path: ocp.path.Path) -> dict[str, Any]:
    stored = ocp.checkpointables_metadata(path).custom_metadata or {}
    text = stored.get("record", "")
    if zlib.crc32(text.encode()) != stored.get("crc32"):
        raise ValueError("Its record of leaves and settings is missing or damaged.")
    return json.loads(text)


def _read_arrays(path: ocp.path.Path, abstract_state: PyTree) -> PyTree:
    """Each process reads its own part and waits for nobody: one that fails would leave the others at Orbax's barrier."""
    context, process = ocp.Context(), jax.process_index()
    context.multiprocessing_options.primary_host = process
    context.multiprocessing_options.active_processes = {process}
    with context:
        state = ocp.load(path, abstract_state)
    return jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), state, abstract_state)  # no copy if in place


def _check_match(path: ocp.path.Path, saved: dict[str, str], expected: dict[str, str]) -> None:
    faults = [f"{leaf} {expected[leaf]}: not in the checkpoint" for leaf in expected if leaf not in saved]
    faults += [f"{leaf} {saved[leaf]}: in the checkpoint, not in this run" for leaf in saved if leaf not in expected]
    faults += [
        f"{leaf}: {saved[leaf]} in the checkpoint, {expected[leaf]} in this run"
        for leaf in expected
        if leaf in saved and saved[leaf] != expected[leaf]
    ]
    if faults:
        listing = "\n  ".join(faults[:20] + [f"... and {len(faults) - 20} more"] * (len(faults) > 20))
        raise MismatchError(
            f"{path} holds another state than this run's, so it was written under another config:\n  {listing}\n"
            "Use the config it was written with, or give this run a work directory of its own."
        )


def _check_exact(state: PyTree) -> None:
    """Refuses leaves whose restored twin would differ in a way that compiles the step a second time."""
    faults = []
    for path, leaf in _paths(state).items():
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            faults.append(f"{path} is a {type(leaf).__name__}: make it a jax.Array")
        elif getattr(leaf, "weak_type", False):  # keys have none
            faults.append(f"{path} is weakly typed: create it with a dtype, e.g. jnp.zeros((), jnp.float32)")
        elif leaf.sharding is None:
            faults.append(f"{path} has no sharding: give its ShapeDtypeStruct one")
    if faults:
        raise ValueError("The state cannot be checkpointed exactly:\n  " + "\n  ".join(faults))


def _paths(state: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _describe(state: PyTree) -> dict[str, str]:
    """Path of each leaf to its type and shape, e.g. "bfloat16[8,4]"."""
    return {path: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in _paths(state).items()}


def _digests(state: PyTree) -> dict[str, str]:
    """Path of each leaf to a digest of its bits, which does not depend on how the leaf is sharded."""
    paths = _paths(state)
    digests = np.asarray(_digest_all(list(paths.values())))
    return {path: f"{int(digest):08x}" for path, digest in zip(paths, digests, strict=True)}


@jax.jit
def _digest_all(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_digest(leaf) for leaf in leaves])


def _digest(a: jax.Array) -> jax.Array:
    """Sum modulo 2³² of every element's bits, hashed with its position.

    The hash is one to one at each position, so a change of one element always shows, any other with probability
    1 − 2⁻³². A sum modulo 2³² doesn't depend on its order, so neither on the mesh.
    """
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    if a.dtype == jnp.bool_:
        a = a.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(a, jnp.dtype(f"uint{min(8 * a.dtype.itemsize, 32)}")).astype(jnp.uint32)
    position = jnp.zeros(bits.shape, jnp.uint32)
    for dimension, size in enumerate(bits.shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
    mixed = bits + position * np.uint32(0x9E3779B9)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):  # MurmurHash3's finaliser
        mixed = (mixed ^ (mixed >> 16)) * np.uint32(multiplier)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _set_aside(checkpointer: Checkpointer, damaged: dict[int, str]) -> None:
    if jax.process_index() == 0:
        for step in damaged:
            aside = checkpointer.directory / f"{step}.damaged"
            if aside.exists():
                aside.rmtree()
            (checkpointer.directory / str(step)).rename(aside)
    if jax.process_count() > 1:  # nobody looks for these steps before they are gone
        multihost_utils.sync_global_devices("meal_jax.checkpoint.set_aside")
