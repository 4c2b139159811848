"""Synthetic work: prompts of one length, nothing of which ends a response early."""

import numpy as np
import pytest

from meal_jax import build
from meal_jax import config as base
from meal_jax.tasks import synthetic


def config(**changes):
    c = base.default()
    small = {"task": "synthetic", "data.prompt_length": 7, "batch_size": 4, "eval.prompts": 4, "policy.lora_rank": 2}
    c.update_from_flattened_dict(small | {name.replace("__", "."): value for name, value in changes.items()})
    return c


def test_prompts_fill_their_length_and_hold_no_end_token():
    task = build.build_task(config(objectives=("a", "b", "c")))
    assert task.train.tokens.shape == (16, 7) and task.train.mask.all()
    assert task.train.tokens.min() >= synthetic.FIRST_ID and task.train.tokens.max() < task.transformer.vocab_size
    assert not set(task.train.id) & set(task.test.id)
    assert np.flatnonzero(task.forbidden).tolist() == [task.end]
    assert task.weights is None and task.reward_reads_base and task.reward_params["w"].shape == (3, 64)


def test_a_directory_gives_shapes_and_weights_or_shapes_alone(chat_model):
    task = build.build_task(config(policy__source=str(chat_model)))
    assert task.weights(None)["embedding"].shape == (320, 16)
    drawn = build.build_task(config(policy__source=f"random:{chat_model}"))
    assert drawn.weights is None and drawn.transformer == task.transformer


def test_prompts_need_a_length():
    with pytest.raises(ValueError, match=r"prompt_length=0"):
        build.build_task(config(data__prompt_length=0))
