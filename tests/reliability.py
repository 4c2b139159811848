"""Kills and corrupts runs, and says whether anything that was saved was lost: figures for docs/reliability.md.

    python tests/reliability.py --kills=50 --only=toy,text

Each case runs the command line in processes of their own, in a tiny configuration, and compares the end with that of a run
that nobody touched: the newest checkpoint's digests, all metrics but those of time and memory, and the results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "batch_size": 4, "meal.candidates": 2, "sampling.max_new": 4, "compare_with": "()", "eval.batch_size": 16,
    "eval.prompts": 16, "eval.divisions": 2, "eval.bootstrap": 20, "checkpoint.every": 5, "mesh.data": 1,
}  # fmt: skip
TOY = SIZES | {
    "policy.width": 16,
    "policy.hidden": 16,
    "policy.layers": 1,
    "steps": 300,
    "eval.every": 100,
    "mesh.data": None,
}
TEXT = SIZES | {
    "steps": 60, "eval.every": 20, "eval.prompts": 8, "eval.batch_size": 8, "policy.lora_rank": 2, "policy.chunk": None,
    "data.format": "own", "data.prompt_length": 48, "meal.beta": 0.0,
}  # fmt: skip
REWARDS = """
def short(prompts, responses):
    return [-len(response) for response in responses]

def vowels(prompts, responses):
    return [sum(c in "aeiou" for c in response) for response in responses]
"""
ENDED = 0


def command(case: str, home: Path, workdir: Path, **fields: Any) -> list[str]:
    """The command line of a case, "toy" or "text"; `home` holds what the latter reads."""
    values = {"toy": TOY, "text": TEXT}[case] | {name.replace("__", "."): value for name, value in fields.items()}
    config = "configs/toy.py"
    if case == "text":
        config = "configs/assistant_small.py"
        (home / "mine.py").write_text(REWARDS)
        rows = "".join(json.dumps({"prompt": f"question number {i}, please"}) + "\n" for i in range(200))
        (home / "rows.jsonl").write_text(rows)
        values |= {
            "policy.source": ROOT / "tests" / "saved" / "model", "data.path": home / "rows.jsonl",
            "reward.sources": f"('python:{home}/mine.py:short','python:{home}/mine.py:vowels')",
        }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    return [
        sys.executable,
        "-m",
        "meal_jax.main",
        f"--config={config}",
        *flags,
        f"--workdir={workdir}",
        "--stopped_status=75",
    ]


def start(line: list[str], home: Path, **more: str) -> subprocess.Popen:
    """The command in a process group of its own, its output in home/log."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0", "MEAL_CACHE": "0",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    log = open(home / "log", "a")
    return subprocess.Popen(line, cwd=ROOT, env=environment | more, stdout=log, stderr=log, start_new_session=True)


def finish(line: list[str], home: Path, seconds: float = 600) -> tuple[int, str, float]:
    """Runs the command to its end: status, the end of what it said, seconds."""
    (home / "log").write_text("")
    began = time.monotonic()
    status = start(line, home).wait(timeout=seconds)
    return status, (home / "log").read_text(), time.monotonic() - began


def result(workdir: Path) -> dict[str, Any]:
    """What two runs must share to the bit."""
    steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    metadata = ocp.checkpointables_metadata(workdir / "checkpoints" / str(steps[-1])).custom_metadata
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    pareto = json.loads((workdir / "pareto.json").read_text())
    clock = ("time/", "memory/", "score/known")  # a process that was killed has forgotten what it had scored
    return {
        "leaves": json.loads(metadata["record"])["leaves"],
        "metrics": [{name: v for name, v in row.items() if not name.startswith(clock)} for row in rows],
        "pareto": {name: v for name, v in pareto.items() if name not in ("seconds_training", "compiled")},
    }


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process, its children and its loaders."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen, seconds: float = 900) -> Any:
    """What `condition` gives once it is true; AssertionError if the process ends first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        assert process.poll() is None, "the run ended first"
        time.sleep(0.002)
    raise AssertionError("nothing came")


def kills(case: str, home: Path, count: int, seed: int = 0, limit: float = 1e9) -> dict[str, Any]:
    """`count` SIGKILLs at random moments of runs of a case, each run started again until it ends; within `limit` seconds."""
    draw, began = random.Random(seed), time.monotonic()
    status, text, _ = finish(command(case, home, home / "whole"), home)
    assert status == ENDED, text[-2000:]
    expected = result(home / "whole")
    shutil.rmtree(home / "whole")
    status, text, seconds = finish(command(case, home, home / "whole"), home)  # its programs are compiled now
    assert status == ENDED and result(home / "whole") == expected, "two whole runs differ"
    done, runs = 0, 0
    while done < count and time.monotonic() - began < limit:
        workdir, before = home / f"killed_{runs}", done
        while True:
            process, moment = start(command(case, home, workdir), home), draw.uniform(0, seconds)
            started = time.monotonic()
            if done >= count or time.monotonic() - began > limit:
                moment = 600.0
            try:
                status = process.wait(timeout=moment)
                break
            except subprocess.TimeoutExpired:
                kill(process)
                done += 1
        assert status == ENDED, (home / "log").read_text()[-1500:]
        assert result(workdir) == expected, f"after {done} kills {workdir} differs"
        shutil.rmtree(workdir)
        runs += 1
        if done == before:  # faster than it was: moments are drawn over the time that a whole run takes now
            seconds = time.monotonic() - started
    return {"case": case, "kills": done, "runs": runs, "seconds": round(seconds, 1), "same_bits": True}


def full_disk(home: Path) -> dict[str, Any]:
    """The disk fills up in a save: a message, what was saved stays, and with room again the run ends with the same bits."""
    disk = home / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk]).returncode:
        return {"case": "disk full", "skipped": "a tmpfs cannot be mounted here"}
    try:
        status, text, seconds = finish(command("toy", home, disk / "run", checkpoint__keep=50), home)
        saved = sorted(int(p.name) for p in (disk / "run" / "checkpoints").glob("*") if p.name.isdigit())
        assert status not in (ENDED, 75) and saved, text
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        again, words, _ = finish(command("toy", home, disk / "run"), home)
        assert again == ENDED, words
        return outcome("disk full", home, disk / "run", status, text, seconds) | {"saved": len(saved)}
    finally:
        subprocess.run(["umount", disk])


def read_only(home: Path) -> dict[str, Any]:
    """A workdir that cannot be written to."""
    disk = home / "sealed"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", disk]).returncode:
        return {"case": "read-only workdir", "skipped": "a tmpfs cannot be mounted here"}
    try:
        status, text, seconds = finish(command("toy", home, disk / "run"), home)
        assert status not in (ENDED, 75) and "Traceback" not in text, text
        return {"case": "read-only workdir", "status": status, "said": last(text), "seconds": round(seconds, 1)}
    finally:
        subprocess.run(["umount", disk])


def half_done(home: Path, name: str) -> Path:
    """A workdir whose run was killed with two checkpoints, the newest not the last."""
    workdir = home / name
    process = start(command("toy", home, workdir), home)

    def names():
        return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit() and int(p.name) >= 100]

    wait_for(lambda: len(names()) >= 2, process)
    kill(process)
    return workdir


def truncate(checkpoint: Path) -> None:
    """Cuts every file of a checkpoint's arrays to half: the largest alone may be one that a restore does not read."""
    files = [file for file in checkpoint.rglob("d/*") if file.is_file()]
    assert files
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


def damaged(home: Path, which: str) -> dict[str, Any]:
    """The newest checkpoint truncated, or the older, or both."""
    workdir = half_done(home, f"damaged_{which}")
    numbers = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    for number in {"newest": numbers[-1:], "older": numbers[:1], "both": numbers}[which]:
        truncate(workdir / "checkpoints" / str(number))
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    status, text, seconds = finish(command("toy", home, workdir), home)
    if which == "both":
        after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
        assert status not in (ENDED, 75) and "None of the checkpoints" in text and after == before, text
        return {"case": "both damaged", "status": status, "said": last(text), "seconds": round(seconds, 1)}
    return outcome(f"{which} damaged", home, workdir, status, text, seconds)


def terminated(home: Path, when: str) -> dict[str, Any]:
    """SIGTERM during a save, or during an evaluation."""
    workdir = home / f"told_{when}"
    fields = {"eval__every": 50, "eval__prompts": 1024, "eval__bootstrap": 2000} if when == "evaluation" else {}
    whole = home / f"whole_{when}" if fields else home / "whole"
    if fields:
        status, text, _ = finish(command("toy", home, whole, **fields), home)
        assert status == ENDED, text[-2000:]
    process = start(command("toy", home, workdir, **fields), home)
    if when == "save":
        wait_for(
            lambda: list((workdir / "checkpoints").glob("*tmp*")) and (workdir / "checkpoints" / "20").exists(), process
        )
    else:
        wait_for(lambda: (workdir / "checkpoints" / "50").exists(), process)  # the evaluation at 50 is under way
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=120)
    seconds = time.monotonic() - began
    assert status == 75, (status, (home / "log").read_text()[-1500:])
    again, text, _ = finish(command("toy", home, workdir, **fields), home)
    assert again == ENDED and result(workdir) == result(whole), text
    return {"case": f"SIGTERM in {when}", "status": status, "seconds": round(seconds, 1), "same_bits": True}


def both(home: Path, workdir: Path) -> list[subprocess.Popen]:
    """A run of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = command("toy", home, workdir, eval__batch_size=16, mesh__data=2)
    joined = [
        f"--coordinator=localhost:{port}",
        "--processes=2",
        "--heartbeat_seconds=60",
    ]  # a busy machine starves threads
    return [start([*line, *joined, f"--process={i}"], home) for i in range(2)]


def compiling_in_two(home: Path, told: int) -> dict[str, Any]:
    """SIGTERM to one of two processes while they compile their first step: both leave, and nothing is in the way later."""
    workdir, cache = home / f"compiling_{told}", home / "cache"
    (home / "log").write_text("")
    if cache.exists():
        cache.rename(home / "cache_aside")
    try:
        group = both(home, workdir)
        wait_for(lambda: "The first step takes longest" in (home / "log").read_text(), group[0])
        began = time.monotonic()
        group[told].send_signal(signal.SIGTERM)
        try:
            statuses = [process.wait(timeout=60) for process in group]
        finally:
            for process in group:
                kill(process)
        seconds, text = time.monotonic() - began, (home / "log").read_text()
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        if (home / "cache_aside").exists():
            (home / "cache_aside").rename(cache)
    said = "stopped before the first step was done: nothing to save"
    assert statuses == [75, 75] and text.count(said) == 2 and "Traceback" not in text, (statuses, text)
    assert not list((workdir / "checkpoints").glob("[0-9]*")), text
    again = both(home, workdir)
    assert [process.wait(timeout=600) for process in again] == [0, 0], (home / "log").read_text()[-1500:]
    case = f"SIGTERM to process {told} of 2, compiling"
    return {"case": case, "status": statuses[0], "said": said, "seconds": round(seconds, 1)}


def one_of_two(home: Path) -> dict[str, Any]:
    """One of two processes is killed: the other ends by itself, and both started again end with the bits of one process."""
    whole = both(home, home / "two")
    assert [process.wait(timeout=600) for process in whole] == [0, 0], (home / "log").read_text()[-1500:]
    first, second = both(home, home / "two_killed")
    wait_for(lambda: list((home / "two_killed" / "checkpoints").glob("1[0-9]")), first)
    (home / "log").write_text("")
    began = time.monotonic()
    kill(second)
    status = first.wait(timeout=180)
    seconds, text = time.monotonic() - began, (home / "log").read_text()
    assert status != 0, text[-1500:]
    again = both(home, home / "two_killed")
    assert [process.wait(timeout=600) for process in again] == [0, 0], (home / "log").read_text()[-1500:]
    assert result(home / "two_killed") == result(home / "two")
    words = "died" if "died" in text else last(text)
    return {
        "case": "one of two killed",
        "status": status,
        "said": words,
        "seconds": round(seconds, 1),
        "same_bits": True,
    }


def outcome(case: str, home: Path, workdir: Path, status: int, text: str, seconds: float) -> dict[str, Any]:
    same = result(workdir) == result(home / "whole")
    assert same, f"{case}: another end than that of the untouched run"
    return {"case": case, "status": status, "said": last(text), "seconds": round(seconds, 1), "same_bits": same}


def last(text: str) -> str:
    """The line of a run's output that says what happened."""
    lines = text.splitlines() or [""]
    words = [line for line in lines if re.search(r"^error: |is damaged and is skipped|stopped (at|before)", line)]
    return re.sub(r"/\S+/", "…/", (words or lines)[-1])[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each case of --only")
    parser.add_argument("--only", default="toy,text,others", help="toy, text, others; with commas")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which a case is killed no more")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    for case in args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            if case != "others":
                print(json.dumps(kills(case, home, args.kills, args.seed, args.limit)), flush=True)
                continue
            status, text, _ = finish(command("toy", home, home / "whole"), home)
            assert status == ENDED, text[-2000:]
            parts = [(damaged, home, which) for which in ("newest", "older", "both")]
            parts += [(compiling_in_two, home, told) for told in range(2)]
            parts += [(terminated, home, when) for when in ("save", "evaluation")]
            for part, *where in (*parts, (full_disk, home), (read_only, home), (one_of_two, home)):
                try:
                    print(json.dumps(part(*where)), flush=True)
                except AssertionError as error:
                    print(f"FAILED {part.__name__} {where[1:]} …{str(error)[-2000:]}", flush=True)


if __name__ == "__main__":
    main()
