"""Workdirs of runs that were never trained, with measures as a test wants them."""

import json

import numpy as np
import pytest

BUDGET = {"reward_calls": 0, "gradient_tokens": 0, "models": 1, "forwards_per_token": 1}
PREFERENCES = [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]


def write_run(folder, hypervolumes, tokens, utility=None, reference=(0.0, 0.0), **measures):
    """A finished run whose evaluations are 10 steps apart.

    Args:
      folder: of the run.
      hypervolumes, tokens: at each evaluation.
      utility: by step.
      reference: of the hypervolume.
      measures: others, at the end; 0 at first, a line between.
    """
    (folder / "evals").mkdir(parents=True)
    last, history = len(hypervolumes) - 1, []
    for i, (volume, spent) in enumerate(zip(hypervolumes, tokens, strict=True)):
        values = {
            "hypervolume": volume, "mean_inner_product": volume / 2, "sparsity": 0.1, "spacing": 0.1, "non_dominated": 1.0,
            "truncated": 0.0, "repetitive": 0.0, "monotonicity": [1.0, 1.0],
        } | {name: value * i / last for name, value in measures.items()}  # fmt: skip
        values |= {f"{name}_interval": [value, value] for name, value in list(values.items())}
        values |= {"preferences": PREFERENCES, "points": (volume * np.array(PREFERENCES)).tolist(), "step": 10 * i}
        (folder / "evals" / f"{10 * i:06d}.json").write_text(json.dumps(values))
        budget = BUDGET | {"rollout_tokens": spent, "updates": 20 * i}
        history.append({"step": 10 * i, "hypervolume": volume, "budget": budget})
    final = values | {"history": history, "budget": budget, "seconds_training": 1.0, "reference": list(reference)}
    (folder / "pareto.json").write_text(json.dumps(final | {"objectives": ["first", "second"], "task": "toy"}))
    utility = np.linspace(0, 1, 10 * last) if utility is None else utility
    rows = [{"step": i, "utility": float(u), "grad_norm/policy": float(1 + i % 2)} for i, u in enumerate(utility)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def write_runs(tmp_path):
    """Function (variant, final hypervolume by seed, **what `write_run` takes), writing VARIANT/SEED; gives the root."""

    def write(variant, volumes, tokens=(0, 100, 200), **rest):
        for seed, volume in enumerate(volumes):
            write_run(tmp_path / variant / str(seed), [0.0, volume / 2, volume], tokens, **rest)
        return tmp_path

    return write
