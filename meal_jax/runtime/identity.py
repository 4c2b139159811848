"""One directory, one run: what makes a command the same run as the one that a directory records.

`config.json` is a run's identity. A command whose configuration differs is refused by the fields that differ, unless each is
one that leaves the recorded results true (HARMLESS). Training, comparison, generation, export, fine-tuning, reward training
and the doctor all ask `need_same`. `hold` keeps a second process out of a directory while a first one writes to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from meal_jax.runtime import distributed

# Fields, or whole sections, that may differ from the recorded ones, and why the record stays true.
HARMLESS = {
    "steps": "more of them continue from the last state; fewer than are done are refused apart",
    "compare_with": "the other methods have directories of their own",
    "eval": "decides how a state is measured, not how it is trained; evaluations under other settings are set aside",
    "checkpoint": "decides when and how many states are kept; changes that accept_inputs accepts are in inputs.json",
    "tensorboard": "an output",
    "track": "an output",
    "profile_steps": "an output",
    "timed": "the same step in three programs, for the metrics' sake; sums are the same but for rounding",
    "mesh": "decides where arrays lie; random draws and sums do not depend on it but for rounding",
    "micro": "decides how much is computed at a time; sums are the same but for rounding, without dropout",
    "rollout.gather": "decides where weights lie while they are read",
    "rollout.unstack_layers": "the same weights, sliced once",
    "rollout.attention": "the same attention in another kernel, for another device",
    "policy.attention": "the same attention in another kernel, for another device",
    "policy.remat": "decides what is kept for the backward pass and what is computed again",
    "policy.chunk": "decides how many positions are projected at a time",
    "reward.batch_size": "decides how many rows are scored at a time",
}
# Of the fields above, those that change what an evaluation says. The others of `eval` only space or batch it.
MEASURING = ("eval.prompts", "eval.grid", "eval.divisions", "eval.temperature", "eval.top_k", "eval.top_p", "eval.samples",
             "eval.reference", "eval.bootstrap")  # fmt: skip
# A reader of a finished run may also say where its inputs are now; everything else is as trained.
MOVED = {
    name: "says where an input is now"
    for name in ("policy.source", "data.path", "data.posts", "reward.heads", "reward.judge", "reward.sources")
}
PATHS = ("policy.source", "data.path", "data.posts", "reward.heads", "reward.judge", "source")
# Fields that follow config.steps where nobody sets them.
FOLLOWING = ("ric.offline_steps", "dpo.sft_steps")
LOCK = ".lock"

_held: set[Path] = set()


class AnotherRunError(ValueError):
    """A directory holds a run of another configuration."""


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two configurations of JSON values, as {dotted name: (saved, asked)}.

    Paths that lead to the same place are equal. A field that one of the two lacks is None there.
    """
    out = {}
    for name in dict.fromkeys((*saved, *asked)):
        old, new, field = saved.get(name), asked.get(name), prefix + name
        if isinstance(old, Mapping) or isinstance(new, Mapping):
            out |= differences(old or {}, new or {}, f"{field}.")
        elif old != new and not (field in PATHS and _same_path(old, new)):
            out[field] = (old, new)
    return out


def need_same(
    where: str | os.PathLike,
    saved: Mapping[str, Any],
    asked: Mapping[str, Any],
    harmless: Collection[str] = HARMLESS,
    done: int = 0,
) -> dict[str, tuple[Any, Any]]:
    """Refuses a command whose configuration is another run's than the one recorded in a directory.

    Args:
      where: the directory, for the message.
      saved, asked: the recorded configuration and the command's, as JSON values.
      harmless: fields and sections that may differ.
      done: steps that the recorded run has done.

    Returns:
      The fields that differ, all of them harmless: {name: (recorded, asked)}.

    Raises:
      AnotherRunError: names each field, recorded → asked, and what to do.
    """
    changes = differences(saved, asked)
    refused = {name: pair for name, pair in changes.items() if not _covered(name, harmless)}
    if refused:
        lines = "\n".join(f"  config.{name}: {_show(old)} → {_show(new)}" for name, (old, new) in refused.items())
        kept = [f"--config.{name}={refused[name][0]}" for name in FOLLOWING if name in refused and "steps" in changes]
        if kept:
            lines += f"\nUnset it follows config.steps: to go on with more steps, add {' '.join(kept)}."
        raise AnotherRunError(
            f"{where} holds a run of another configuration (recorded → asked for):\n{lines}\n"
            "Nothing there was changed. Give this run a directory of its own, or repeat the recorded configuration."
        )
    if asked.get("steps") is not None and asked["steps"] < done:
        raise AnotherRunError(
            f"{where} holds a run that has done {done} steps, and config.steps={asked['steps']} are fewer. Nothing there was "
            f"changed. Ask for {done} or more, or give this run a directory of its own."
        )
    return changes


def measures_otherwise(changes: Collection[str]) -> bool:
    """Whether evaluations made before these fields changed say something else than those made after."""
    return any(name in MEASURING for name in changes)


@contextlib.contextmanager
def hold(directory: Path, name: str = LOCK) -> Iterator[None]:
    """Context in which no other process can hold the directory; process 0 holds it for all processes of a run.

    Args:
      directory: created if needed.
      name: of the lock file in it; another one where only a part of the directory is held.

    It is a POSIX record lock on an empty file, which ends with its process, however that ends, and which children do not
    inherit. Held again by the same process, it stays held until the outermost context is left.

    Raises:
      ValueError: another process holds it; says which, where that is known.
      OSError: it cannot be written to.
    """
    directory = Path(directory).expanduser().resolve()
    lock = directory / name
    if lock in _held:
        yield
        return
    file = None

    def take() -> None:
        nonlocal file
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a")
        except OSError as error:
            why = error.strerror or error
            raise OSError(
                f"{directory} cannot be written to ({why}): make it so, or give another --workdir."
            ) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            message = _in_use(directory, file)
            file.close()
            raise ValueError(message) from error
        except OSError as error:  # a file system without locks, such as some mounted buckets
            logging.warning("%s cannot be locked (%s): see to it that no second run writes there.", directory, error)

    distributed.from_first(take)
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        if file is not None:
            file.close()


def need_free(directory: Path) -> None:
    """Refuses a directory that another process holds; this one does not hold it afterwards, and nothing is written.

    Raises:
      ValueError: as `hold`.
    """
    directory = Path(directory).expanduser().resolve()
    lock = directory / LOCK
    if lock in _held:  # to close the file would end that lock
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(lock) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several processes may ask at once
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(_in_use(directory, file)) from error
        except OSError:  # a file system without locks
            return


def _in_use(directory: Path, file: Any) -> str:
    return (
        f"{directory} is in use by another run{_holder(file)}. Nothing there was changed. Wait for it to end, stop it, or "
        "give this run a --workdir of its own."
    )


def _holder(file: Any) -> str:
    """The words "(process N)", where the system tells who holds the lock."""
    form = "hhqqi"  # Linux's struct flock
    with contextlib.suppress(OSError, struct.error):
        asked = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        process = struct.unpack(form, fcntl.fcntl(file, fcntl.F_GETLK, asked)[: struct.calcsize(form)])[-1]
        return f" (process {process})" if process > 0 else " (on another host)"
    return ""


def _covered(name: str, fields: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in fields for count in range(1, len(parts) + 1))


def _same_path(old: Any, new: Any) -> bool:
    if not (isinstance(old, str) and isinstance(new, str) and old and new):
        return False
    return Path(old).expanduser().resolve() == Path(new).expanduser().resolve()


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:110]} …"
