import dataclasses

import pytest

from meal_jax import cost
from meal_jax.aot import memory
from meal_jax.hf import shapes
from meal_jax.models.lora import Lora
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rollout.weights import RolloutWeights

MODEL = TransformerConfig(1200, 64, 3, 4, 2, 16, 160, lora=Lora(4, targets="q$"))
RUN = cost.Run(MODEL, prompts=8, candidates=4, prompt_length=20, max_new=12, slots=3)


def test_memory_of_a_hand_counted_model():
    held = memory.estimate(RUN, {"data": 2, "fsdp": 2})
    assert held["weights"] == 4 * cost.base_parameters(MODEL) / 2
    # k and v, layers, keys of a chip, key-value heads, their width, float32
    assert held["cache"] == 2 * 3 * (2 * 20 + 2 * 4 * 14) * 2 * 16 * 4
    assert held["optimizer"] == 4 * 4 * (3 * 4 * (64 + 64)) / 2
    assert memory.estimate(RUN, base_copies=2)["weights"] == 8 * cost.base_parameters(MODEL)


def test_less_is_kept_the_more_is_done_again():
    none, dots, full = (
        memory.estimate(dataclasses.replace(RUN, model=dataclasses.replace(MODEL, remat=remat)))["activations"]
        for remat in ("none", "dots", "full")
    )
    assert none > dots > full


def smollm2(remat, part, **changes):
    """GB of activations and logits of configs/assistant_small.py's update, `part` of a half's four prompts at a time."""
    model = shapes.load_config("SmolLM2-135M", remat=remat, lora=Lora(16))
    run = cost.Run(
        model, prompts=8, candidates=4, prompt_length=64, max_new=32, slots=0, parts=(1, 1, 4 // part), **changes
    )
    held = memory.estimate(run)
    return (held["activations"] + held["logits"]) / 1e9


@pytest.mark.parametrize(
    ("remat", "part", "changes", "taken"),
    [
        ("none", 4, {}, 10.23), ("dots", 4, {}, 6.15), ("full", 4, {}, 2.39), ("none", 2, {}, 1.10), ("none", 1, {}, 0.58),
        ("none", 4, {"net": False}, 5.92), ("full", 4, {"net": False}, 0.72), ("none", 2, {"net": False}, 0.90),
    ],
)  # fmt: skip
def test_an_update_is_estimated_at_about_what_xla_took_for_it_on_a_cpu(remat, part, changes, taken):
    """By the compiler, docs/performance.md has the program. Too little is worse than too much."""
    assert 0.9 < smollm2(remat, part, **changes) / taken < 1.8


def test_the_cache_and_the_backward_pass_are_not_held_together():
    parts = {"weights": 1.0, "trained": 2.0, "optimizer": 3.0, "cache": 4.0, "activations": 5.0, "logits": 6.0}
    parts["rollout weights"] = 0.0
    assert memory.peak(parts) == 17.0
    assert memory.peak(parts | {"cache": 40.0}) == 46.0
    assert memory.peak(parts | {"rollout weights": 8.0}) == 18.0


def test_reward_models_are_held_all_the_time():
    held = memory.estimate(RUN)
    assert memory.peak(held | {"reward models": 1e9}) == memory.peak(held) + 1e9


def test_the_rollouts_own_copy_of_the_weights():
    def copy(mesh, **changes):
        run = dataclasses.replace(RUN, rollout_weights=RolloutWeights(**changes))
        return memory.estimate(run, mesh)["rollout weights"]

    split, base = {"fsdp": 2, "tensor": 2}, cost.base_parameters(MODEL)
    assert copy(split) == copy({"tensor": 2}, gather=True) == 0  # nothing is split that could be gathered
    assert copy(split, gather=True) == 4 * base / 2
    assert copy(split, weights="merged") == 4 * base / 4
    assert copy(split, unstack_layers=True) == 4 * base / 4
    assert copy(split, weights="int8", gather=True) == base / 2
