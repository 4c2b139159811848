import jax
import pytest

from meal_jax import config as base
from meal_jax.runtime import sharding

MAKE_MESH = sharding.make_mesh


@pytest.fixture
def small(monkeypatch):
    """The configuration of a bench in miniature, static targets, on one device."""
    monkeypatch.setattr(sharding, "make_mesh", lambda *axes: MAKE_MESH(1, 1, 1, jax.devices()[:1]))
    config = base.default()
    changes = {
        "task": "synthetic", "method": "static", "batch_size": 4, "meal.candidates": 2, "sampling.max_new": 3,
        "data.prompt_length": 5, "policy.width": 16, "policy.hidden": 16, "policy.layers": 1, "policy.heads": 2,
        "policy.lora_rank": 2, "policy.lora_alpha": 4.0, "eval.prompts": 4, "eval.batch_size": 4,
    }  # fmt: skip
    config.update_from_flattened_dict(changes)
    return config
