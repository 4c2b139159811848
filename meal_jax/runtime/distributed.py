"""Several processes as one run: how they find each other, agree, and end together.

Every process runs the same program over all devices; process 0 alone writes, but for the checkpoints, which all write.
They never act on what one of them alone has seen: what is decided from a file, a clock or a signal is decided by process
0 and told to all (`from_first`), or asked of all (`agree`, `stop_point`). All functions below are called by every
process, in the same order, and with one process cost nothing.

How processes are started: on a TPU pod slice, in a GKE job, by srun or mpirun, `--distributed` finds the others. Elsewhere
each is told `--coordinator=HOST:PORT --processes=N --process=i`, or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID; where several share a host, JAX_LOCAL_DEVICE_IDS says which GPUs are whose. Under srun each task has one GPU:
start as many tasks on a node as it has GPUs.

Ports: on TPUs JAX's coordinator listens on 8482 since jax 0.8.1, which the firewalls of existing Google Cloud projects often
leave shut; 8476, the port before, is taken here unless JAX_COORDINATOR_PORT says another. Under Slurm and Open MPI the
port follows from the job's number, so that two jobs can share a host.

Told to stop (SIGTERM to any process, or the cluster's notice of a preemption), all stop at the same point and save: after the
step or the batch of an evaluation that is under way and at most a second's worth of more, since the notice is looked for once
a second. What comes on top is the save itself, as long as its bytes take to write. While the first step compiles there is
nothing to save: a process alone leaves at once, and of several nobody listens until then.

If a process dies, the others learn of it from missed heartbeats, or sooner from a broken collective, and end with a message
and a nonzero status within twice `--heartbeat_seconds`. Run the same command again and it goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

PORT = "8476"
HEARTBEAT_SECONDS = 60  # after which a silent process counts as dead
START_SECONDS = 300  # that processes wait for each other at the start
HINT_SECONDS = 20  # of that wait, after which a likely reason is printed
ALONE = "{} runs in one process: start it on one host, once, without --distributed, --coordinator or JAX_NUM_PROCESSES."

_points = itertools.count()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that `start_as_flags_say` reads; their defaults come from the environment."""
    of, into = os.environ.get, {"flag_values": values}
    found = "Join the other processes of this TPU pod slice, GKE job, srun or mpirun, which are found."
    flags.DEFINE_bool("distributed", False, found, **into)
    address = "HOST:PORT of process 0, where processes are not found by themselves."
    flags.DEFINE_string("coordinator", of("JAX_COORDINATOR_ADDRESS"), address, **into)
    count, which = "How many processes there are (with --coordinator).", "Which of them this is, from 0."
    flags.DEFINE_integer("processes", of("JAX_NUM_PROCESSES"), count, lower_bound=1, **into)
    flags.DEFINE_integer("process", of("JAX_PROCESS_ID"), which, lower_bound=0, **into)
    silence = "Seconds of silence after which a process counts as dead."
    flags.DEFINE_integer("heartbeat_seconds", HEARTBEAT_SECONDS, silence, lower_bound=1, **into)


def start_as_flags_say(f: flags.FlagValues = flags.FLAGS) -> None:
    """`start` with the command line's values."""
    start(f.distributed, f.coordinator, f.processes, f.process, heartbeat_seconds=f.heartbeat_seconds)


def start(
    find: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Joins the other processes; the first use of JAX in a program, or JAX refuses. Does nothing for a process alone.

    Args:
      find: the environment (TPU, GKE, Slurm, Open MPI) says who the others are.
      coordinator: HOST:PORT of process 0, where it does not.
      processes, process: how many there are and which this is; what is None is found as above.
      heartbeat_seconds: silence after which a process counts as dead.

    Raises:
      ValueError: the values do not fit each other or the environment.
      RuntimeError: the others did not come.
    """
    import jax

    if not find and coordinator is None:
        if processes is not None or process is not None:
            raise ValueError("--processes and --process come with --coordinator=HOST:PORT, the address of process 0.")
        if _tasks() > 1:
            raise ValueError(f"srun started {_tasks()} tasks, which would each be a run of its own: add --distributed.")
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
                "--coordinator=HOST:PORT --processes=N --process=i, or leave --distributed away for one process."
            ) from error
    with _hint_if_slow("all devices"):
        devices = jax.devices()
    if jax.process_index() == 0:
        local = jax.local_device_count()
        print(
            f"{jax.process_count()} processes, {len(devices)} devices ({devices[0].device_kind}), {local} here",
            flush=True,
        )


def _tasks() -> int:
    """Tasks of the srun that this process is one of; 1 without."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if "SLURM_PROCID" in os.environ else 1


@contextlib.contextmanager
def _hint_if_slow(what: str) -> Iterator[None]:
    message = (
        f"still waiting for {what}. Was the command started on every host (gcloud … tpu-vm ssh --worker=all, srun on all "
        f"nodes), with the same --coordinator and --processes, and can they reach its port? Waits {START_SECONDS} s in all."
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
    """Context of a whole program: one of several processes that fails leaves at once, with its message.

    Python's ordinary end would first wait, minutes, for the other processes to say that they are done, while they wait for
    this one in a collective. Gone, it is missed.
    """
    import jax

    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized() and not (isinstance(error, SystemExit) and not error.code):
            said = str(error) if isinstance(error, SystemExit) else traceback.format_exc()
            print(
                f"{said}\nThis process ends, and the others with it. If the error is of communication, another process "
                "died first: see its log. Run the same command again to go on from the last checkpoint.",
                file=sys.stderr,
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        raise


def refuse_several(what: str) -> None:
    """Raises ValueError if this is one of several processes: `what` is made for one."""
    import jax

    if jax.process_count() > 1 or _tasks() > 1 or int(os.environ.get("JAX_NUM_PROCESSES", 1)) > 1:
        raise ValueError(ALONE.format(what))


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    import jax

    return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns on process 0, which alone calls it, on all.

    Args:
      make: () → a JSON value; may read and write files.

    Raises:
      What `make` raised, on process 0; RuntimeError that says so on the others.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return make()
    error, text = None, b""
    if is_first():
        try:
            text = json.dumps({"value": make()}).encode()
        except Exception as failure:  # all must hear of it, whatever it is
            error, text = failure, json.dumps({"error": f"{type(failure).__name__}: {failure}"}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(1 << max(size - 1, 1).bit_length(), np.uint8)  # few sizes, so few programs
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    told = json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
    if "error" in told:
        raise error or RuntimeError(f"Process 0 failed: {told['error']}")
    return told["value"]


def agree(error: Exception | None, what: str) -> None:
    """Raises on all processes if one failed: there its error, on the others a RuntimeError that names it."""
    import jax
    from jax.experimental import multihost_utils

    failed = [error is not None]
    if jax.process_count() > 1:
        failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if np.any(failed):
        raise RuntimeError(f"{what} failed in process {np.flatnonzero(failed).tolist()}: its log says why.")


def in_shares(function: Callable[..., np.ndarray], *columns: Sequence[Any]) -> np.ndarray:
    """A function of rows, computed by each process for its share of them and put together on all.

    Args:
      function: (columns, each of r rows) → float32 [r]; a row's value does not depend on the other rows.
      *columns: each of R rows, the same on all processes.

    Returns:
      [R] float32.

    Raises:
      What `function` raised, on the process where it did; RuntimeError on the others.
    """
    import jax
    from jax.experimental import multihost_utils

    rows, count = len(columns[0]), jax.process_count()
    if count == 1:
        return function(*columns)
    each = -(-rows // count)
    at = slice(each * jax.process_index(), min(each * (jax.process_index() + 1), rows))
    part, error = np.zeros(each, np.float32), None
    try:
        mine = [column[at] for column in columns]
        if len(mine[0]):
            part[: len(mine[0])] = function(*mine)
    except Exception as failure:  # the others wait to hear
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

    sees = (directory / from_first(write)).exists()
    blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.array(sees)))).tolist()
    if is_first():
        (directory / name).unlink()
    if blind:
        raise ValueError(
            f"--workdir={directory} is another directory for process {blind} than for process 0. With several "
            "processes it must be on a file system that all hosts share (NFS, Filestore, a mounted bucket)."
        )


def stop_point() -> bool:
    """Whether all processes are to stop here, since one of them was told to (SIGTERM, or what the cluster's notice is).

    JAX's preemption service has them agree, in the background, on a call that none has reached yet, one or two on from
    the newest; it is that call that returns True, on all. So calls are counted, and this is called everywhere alike.
    """
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(next(_points)))
