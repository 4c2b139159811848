"""docs/own.md as its reader would follow it: its files are written and its commands run, in order, as they stand there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = "Tom Ann Ben Lily Max Sue Tim Mia Sam Joy Dan Eve Leo Amy Bob Zoe Jim Kim Roy Ida Lea Ned Pam Gus".split()
# What a test adds to each training command, so that it takes seconds: fewer and shorter answers.
SMALL = (
    "--config.steps=2 --config.batch_size=4 --config.meal.candidates=2 --config.sampling.max_new=6 "
    "--config.eval.prompts=2 --config.eval.divisions=1 --config.eval.bootstrap=10 --config.tensorboard=False"
)
PYTHON = f"""#!/usr/bin/env bash
if [[ "$2" == meal_jax.main ]]; then set -- "$@" {SMALL}; fi
exec "{sys.executable}" "$@"
"""


@pytest.fixture(scope="module")
def blocks():
    """(language, text) of each block of the page."""
    return BLOCK.findall(PAGE.read_text())


def test_every_block_is_of_a_kind_that_is_run_and_the_page_names_its_files(blocks):
    assert [language for language, _ in blocks] == ["json", "python", "bash", "bash", "bash"]
    text = PAGE.read_text()
    assert "in `prompts.jsonl`" in text and "in `mine.py`" in text and text.count("```") == 2 * len(blocks)


def test_the_pages_row_becomes_enough_rows_that_differ(blocks):
    rows = prompts(dict(blocks)["json"])
    assert len({row["prompt"] for row in map(json.loads, rows)}) == len(NAMES) >= 20


def prompts(row):
    """The page's row, for each of NAMES in Tom's place."""
    return [row.strip().replace("Tom", name) for name in NAMES]


@pytest.mark.slow
def test_the_page_runs(blocks, tmp_path):
    for name in ("configs", "launch", "docs"):  # the page is read in the repository's root
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    inherited = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # eight devices, see conftest.py
    environment = {**inherited, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    printed = []
    for language, text in blocks:
        if language == "json":
            (tmp_path / "prompts.jsonl").write_text("\n".join(prompts(text)) + "\n")
        elif language == "python":
            (tmp_path / "mine.py").write_text(text)
        else:
            result = subprocess.run(
                ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
            )
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
            printed.append(result.stdout + result.stderr)
    training, doctor, asked = printed
    # What the page says of each.
    for word in ("hypervolume", "inner product", "pairs in order"):
        assert word in training, training
    assert (tmp_path / "runs" / "own" / "report.html").stat().st_size > 10_000
    result = json.loads((tmp_path / "runs" / "own" / "pareto.json").read_text())
    assert result["step"] == 2 and result["objectives"] == ["short", "questions"] and len(result["reference"]) == 2
    assert "splits" in doctor and not (tmp_path / "runs" / "other").exists()
    assert "short questions" in asked and asked.count("1.00") >= 2
    assert (tmp_path / "exported" / "model.safetensors").exists()
