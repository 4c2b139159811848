"""The notebooks: stored with small outputs and without an error; in the slow suite, run from the first cell to the last."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="in the extra test")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZE = 40_000  # bytes of a notebook, outputs included


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_whole_and_in_order(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert path.stat().st_size < SIZE
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds and "error" not in kinds
    assert not any(output.get("name") == "stderr" for output in outputs(notebook))


def test_both_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["own_rewards", "toy"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="in the extra test")
    pytest.importorskip("ipykernel", reason="in the extra test")
    for name in ("configs", "meal_jax"):  # what it writes to runs/ stays out of the repository
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("XLA_FLAGS")  # eight devices, see conftest.py
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")])))
    notebook, stored = read(path), read(path)
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    kinds = [[output.output_type for output in outputs(n)] for n in (notebook, stored)]
    assert kinds[0] == kinds[1]
    assert (tmp_path / "runs").is_dir() and list((tmp_path / "runs").glob("*/report.html"))
