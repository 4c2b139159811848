"""Several processes as one run: how they find each other, agree, and end together.

Every process runs the same program over all devices. Only process 0 writes, except for checkpoints, which all write. A process
never acts on what it alone has seen: decisions from a file, a clock or a signal are made by process 0 and sent to all
(`from_first`), or taken together (`agree`, `stop_point`). Every process calls the functions below in the same order; with one
process they cost nothing.

Starting processes: on a TPU pod slice, in a GKE job, with srun or mpirun, `--distributed` finds the others. Elsewhere each
process gets `--coordinator=HOST:PORT --processes=N --process=i`, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID. If several share a host, JAX_LOCAL_DEVICE_IDS assigns the GPUs. Under srun each task has one GPU: start as many
tasks per node as it has GPUs.

Ports: on TPUs JAX's coordinator listens on 8482 since jax 0.8.1, which firewalls of existing Google Cloud projects often
block. Here the default is 8476, the previous port; JAX_COORDINATOR_PORT changes it. Under Slurm and Open MPI the port depends
on the job's number, so that two jobs can share a host.

Stopping: on SIGTERM to any process, or the cluster's notice of a preemption, all processes stop at the same point and save.
They first finish the current step or evaluation batch and up to one second of further ones, since the notice is checked once
per second. The save itself takes as long as writing its bytes. While the first step compiles, or weights are read before it,
there is nothing to save: all processes exit within seconds (`nothing_to_save`).

If a process dies, the others learn of it from missed heartbeats, or sooner from a broken collective. They end with a message
and a nonzero status within twice `--heartbeat_seconds`. The same command resumes from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from meal_jax import console

PORT = "8476"
HEARTBEAT_SECONDS = 60  # after which a silent process counts as dead
START_SECONDS = 300  # max wait of the processes for each other at the start
HINT_SECONDS = 20  # of that wait before a likely reason is printed
ALONE = "{} runs in one process: start it on one host, once, without --distributed, --coordinator or JAX_NUM_PROCESSES."

NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # where JAX's preemption service tells all processes of a notice to one
LEFT = "meal_jax/left/{}"  # where a process says that it exits before there is something to save
NOTICE_SECONDS = 1.0  # between looks for a notice
LEAVE_SECONDS = 10.0  # max wait of process 0, which the others need for hearing of a notice
STOPPED_EARLY = "stopped before the first step was done: nothing to save; run the same command to resume"

_points = itertools.count()
_nothing_to_save = threading.Event()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that `start_as_flags_say` reads; their defaults come from the environment."""
    env, options = os.environ.get, {"flag_values": values}
    join = "Find and join the other processes of this TPU pod slice, GKE job, srun or mpirun."
    flags.DEFINE_bool("distributed", False, join, **options)
    address = "HOST:PORT of process 0, if --distributed cannot find the processes."
    flags.DEFINE_string("coordinator", env("JAX_COORDINATOR_ADDRESS"), address, **options)
    count, index = "Number of processes (with --coordinator).", "Index of this process, from 0."
    flags.DEFINE_integer("processes", env("JAX_NUM_PROCESSES"), count, lower_bound=1, **options)
    flags.DEFINE_integer("process", env("JAX_PROCESS_ID"), index, lower_bound=0, **options)
    silence = "Seconds of silence after which a process counts as dead."
    flags.DEFINE_integer("heartbeat_seconds", HEARTBEAT_SECONDS, silence, lower_bound=1, **options)


def start_as_flags_say(f: flags.FlagValues = flags.FLAGS) -> None:
    """`start` with the command line's values."""
    status = f.stopped_status if "stopped_status" in f else 0
    start(
        f.distributed, f.coordinator, f.processes, f.process, heartbeat_seconds=f.heartbeat_seconds, stopped_status=status
    )  # fmt: skip


def start(
    find: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    stopped_status: int = 0,
) -> None:
    """Joins the other processes. It must be the first use of JAX in a program. With one process it does nothing.

    Args:
      find: find the other processes by the environment (TPU, GKE, Slurm, Open MPI).
      coordinator: HOST:PORT of process 0, if the environment does not give it.
      processes, process: number of processes and index of this one; None finds them as above.
      heartbeat_seconds: silence after which a process counts as dead.
      stopped_status: exit status of all processes if one is told to stop while there is nothing to save.

    Raises:
      ValueError: the values contradict each other or the environment.
      RuntimeError: the other processes did not connect.
    """
    import jax

    if not find and coordinator is None:
        if processes is not None or process is not None:
            raise ValueError("--processes and --process come with --coordinator=HOST:PORT, the address of process 0.")
        if _tasks() > 1:
            raise ValueError(f"srun started {_tasks()} tasks, which would each be a separate run: add --distributed.")
        with _hint_if_slow("all devices"):
            if jax.process_count() > 1:
                raise ValueError(f"The devices are of {jax.process_count()} hosts, not of this one: add --distributed.")
        return
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator={coordinator} is not HOST:PORT; on Google Cloud port {PORT} is usually open.")
    if _tasks() == 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        os.environ.setdefault("JAX_COORDINATOR_PORT", PORT)
    with _hint_if_slow("its processes to find each other"):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=START_SECONDS,
            )
        except ValueError as error:
            raise ValueError(
                f"The other processes cannot be found ({error}). Outside of TPU pods, GKE, Slurm and Open MPI, give "
                "--coordinator=HOST:PORT --processes=N --process=i, or leave out --distributed for one process."
            ) from error
    nothing_to_save(True)
    threading.Thread(target=_leave_on_notice, args=(stopped_status,), daemon=True).start()
    with _hint_if_slow("all devices"):
        devices = jax.devices()
    if jax.process_index() == 0:
        local = jax.local_device_count()
        print(
            f"{jax.process_count()} processes, {len(devices)} devices ({devices[0].device_kind}), {local} here",
            flush=True,
        )


def _tasks() -> int:
    """Number of tasks of this process's srun; 1 without srun."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_PROCID" in os.environ else 1


@contextlib.contextmanager
def _hint_if_slow(what: str) -> Iterator[None]:
    message = (
        f"still waiting for {what}. Was the command started on every host (gcloud … tpu-vm ssh --worker=all, srun on all "
        f"nodes), with the same --coordinator and --processes, and can they reach its port? Waits at most {START_SECONDS} s."
    )
    timer = threading.Timer(HINT_SECONDS, lambda: print(message, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """Context of a whole program: if one of several processes fails, it exits at once, with its message.

    A normal exit of Python would first wait minutes for the other processes, while they wait for this one in a collective.
    After an immediate exit they notice that it is gone.
    """
    import jax

    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized() and not (isinstance(error, SystemExit) and not error.code):
            message = str(error) if isinstance(error, SystemExit) else traceback.format_exc()
            print(
                f"{message}\nThis process ends, and the others with it. If it is a communication error, another process "
                "died first: see its log. Run the same command again to resume from the last checkpoint.",
                file=sys.stderr,
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        raise


def refuse_several(what: str) -> None:
    """Raises ValueError if this is one of several processes; `what` names the command, which needs a single one."""
    import jax

    if jax.process_count() > 1 or _tasks() > 1 or int(os.environ.get("JAX_NUM_PROCESSES", 1)) > 1:
        raise ValueError(ALONE.format(what))


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    import jax

    return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """Calls `make` on process 0 only and returns its result on all processes.

    Args:
      make: () → a JSON value; may read and write files.

    Raises:
      The error of `make` on process 0; a RuntimeError that names it on the others.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return make()
    error, text = None, b""
    if is_first():
        try:
            text = json.dumps({"value": make()}).encode()
        except Exception as failure:  # all processes must learn of any error
            error, text = failure, json.dumps({"error": f"{type(failure).__name__}: {failure}"}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(1 << max(size - 1, 1).bit_length(), np.uint8)  # few sizes, so few compiled programs
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    received = json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
    if "error" in received:
        raise error or RuntimeError(f"Process 0 failed: {received['error']}")
    return received["value"]


class ElsewhereError(RuntimeError, OSError):
    """Another process failed, at a point that all reach together; its log says why, so a message is enough here."""


def agree(error: Exception | None, what: str) -> None:
    """Raises on all processes if one failed: its own error there, an ElsewhereError that names the process on the others."""
    import jax
    from jax.experimental import multihost_utils

    failed = [error is not None]
    if jax.process_count() > 1:
        failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if np.any(failed):
        raise ElsewhereError(f"{what} failed in process {np.flatnonzero(failed).tolist()}: its log says why.")


def in_shares(function: Callable[..., np.ndarray], *columns: Sequence[Any]) -> np.ndarray:
    """A function of rows: each process computes it for its share of the rows; all get the whole result.

    Args:
      function: (columns, each of r rows) → float32 [r]; a row's value does not depend on the other rows.
      *columns: each of R rows, the same on all processes.

    Returns:
      [R] float32.

    Raises:
      The error of `function` on the process where it failed; RuntimeError on the others.
    """
    import jax
    from jax.experimental import multihost_utils

    rows, count = len(columns[0]), jax.process_count()
    if count == 1:
        return function(*columns)
    size = -(-rows // count)
    share = slice(size * jax.process_index(), min(size * (jax.process_index() + 1), rows))
    part, error = np.zeros(size, np.float32), None
    try:
        own = [column[share] for column in columns]
        if len(own[0]):
            part[: len(own[0])] = function(*own)
    except Exception as failure:  # the other processes wait in `agree`
        error = failure
    agree(error, "A reward of texts")
    return np.ravel(multihost_utils.process_allgather(part))[:rows]


def check_shared(directory: Path) -> None:
    """Raises ValueError, on all processes, unless all see the same directory."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    name = f".shared-{uuid.uuid4().hex}"

    def write():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
        return name

    visible = (directory / from_first(write)).exists()
    blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.array(visible)))).tolist()
    if is_first():
        (directory / name).unlink()
    if blind:
        raise ValueError(
            f"--workdir={directory} is another directory for process {blind} than for process 0. With several "
            "processes it must be on a file system that all hosts share (NFS, Filestore, a mounted bucket)."
        )


def nothing_to_save(value: bool) -> None:
    """Says whether a request to stop, to any of several processes, ends them all at once instead of at a `stop_point`."""
    (_nothing_to_save.set if value else _nothing_to_save.clear)()


def _leave_on_notice(status: int) -> None:
    """Thread: ends this process on a notice to any of them while there is nothing to save.

    The main thread may be in XLA's compiler, which nothing interrupts. JAX itself handles SIGTERM, so no handler of Python's
    hears it. Process 0 goes last: the others hear through it.
    """
    from jax._src import distributed as joined  # there is no public way to the processes' common keys

    client, count, index = (getattr(joined.global_state, name) for name in ("client", "num_processes", "process_id"))
    while client is not None:
        time.sleep(NOTICE_SECONDS)
        if not _nothing_to_save.is_set():
            continue
        try:
            client.key_value_try_get(NOTICE)
        except Exception:  # there is none yet
            continue
        print(console.wrap(STOPPED_EARLY, sys.stderr), file=sys.stderr)
        sys.stderr.flush()
        with contextlib.suppress(Exception):  # another process may be gone already
            client.key_value_set(LEFT.format(index), "", allow_overwrite=True)
            end = time.monotonic() + LEAVE_SECONDS
            for other in range(count if index == 0 else 0):
                remaining = max(end - time.monotonic(), 0.1)
                client.blocking_key_value_get(LEFT.format(other), int(1000 * remaining))
        os._exit(status)


def stop_point() -> bool:
    """Whether all processes should stop here, since one of them was told to (by SIGTERM or the cluster's notice).

    JAX's preemption service lets the processes agree, in the background, on a future call, one or two after the newest. That
    call returns True on all of them. So calls are counted, and all processes must call this equally often.
    """
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))
