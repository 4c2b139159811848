"""Starts several processes of this machine as one run, for tests. Each has CPU devices of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import xla

ROOT = Path(__file__).parents[2]
HEARTBEAT = 10  # a busy machine misses those of 5 seconds while it compiles


class Group:
    """Processes that run one command together; ends them all when its context ends."""

    def __init__(self, command, folder, processes, devices, cache):
        folder.mkdir(parents=True, exist_ok=True)
        port, number = _free_port(), len(list(folder.glob("*.log"))) // processes
        self.logs = [folder / f"{number}.{i}.log" for i in range(processes)]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{xla.devices(devices)} {xla.QUICK}",
            "MEAL_CACHE": "0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),  # restarts compile nothing
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self.processes = []
        for i, log in enumerate(self.logs):
            joined = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={i}"]
            flags = [*joined, f"--heartbeat_seconds={HEARTBEAT}"]
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command, *flags], cwd=ROOT, env=environment, stdout=out, stderr=out
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, timeout=300):
        """Exit statuses, by process."""
        end = time.monotonic() + timeout
        try:
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.output()}") from None

    def running(self):
        return all(process.poll() is None for process in self.processes)

    def output(self, process=None):
        """What a process printed; or the ends of what all did, for a failure's message."""
        if process is not None:
            return self.logs[process].read_text()
        return "\n".join(f"--- {log.name}\n{log.read_text()[-6000:]}" for log in self.logs)


def _free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
