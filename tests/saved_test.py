"""What the version before the house was rebuilt wrote, opened by this one: runs, heads files, exports."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from meal_jax.generate import answers
from meal_jax.hf import pretrained
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import open_run

SAVED = Path(__file__).parent / "saved"
GRID = np.array([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])


@pytest.fixture
def saved(tmp_path):
    """A copy whose paths point at itself."""
    root = tmp_path / "saved"
    shutil.copytree(SAVED, root)
    for file in root.rglob("config.json"):
        file.write_text(file.read_text().replace("SAVED/", f"{root}/"))
    return root


@pytest.mark.parametrize(("name", "tokens"), [("toy", 4), ("assistant", 6)])
def test_a_run_answers_as_it_did(saved, name, tokens):
    old = json.loads((saved / name / "config.json").read_text())
    assert "beside" in old and old["ppo"]["divisions"] == -1
    run = open_run(saved / name)
    assert run.step == 3 and run.config.compare_with == tuple(old["beside"]) and run.config.ppo.divisions is None
    rows = run.task.test.rows(np.array([0, 1]))
    result = answers.answers(run, rows, GRID, sampling=Sampling(temperature=0.0), max_new=tokens)
    expected = np.load(saved / f"{name}_expected.npz")
    np.testing.assert_array_equal(result.tokens, expected["tokens"])
    np.testing.assert_allclose(result.proposals, expected["proposals"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.scores, expected["scores"], rtol=1e-4, atol=1e-5)


def test_an_export_is_a_policy_to_start_from(saved):
    config = pretrained.load_config(saved / "merged")
    merged = pretrained.load_params(saved / "merged", config)
    base = pretrained.load_params(saved / "model", pretrained.load_config(saved / "model"))
    kernel = merged["layers"]["attention"]["q"]["kernel"] - base["layers"]["attention"]["q"]["kernel"]
    assert np.abs(kernel).max() > 1e-3  # the adapters are in it
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(merged))
