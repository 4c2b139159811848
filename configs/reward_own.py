"""Reward heads on your own pairs of answers, for a run that computes them inside the jitted step.

    python -m meal_jax.reward_training.heads --config=configs/reward_own.py:brief,kind --config.data.path=PAIRS
    python -m meal_jax.main --config=configs/own.py --config.objectives="('brief','kind')" \
        --config.reward.heads=runs/reward_own/heads.safetensors --config.data.path=prompts.jsonl

After the colon stand the objectives. PAIRS/brief.jsonl and PAIRS/kind.jsonl hold the pairs of each: JSON lines with prompt,
chosen and rejected. Some hundred pairs make a usable head. Those of a third of the prompts are held out to test it. Other
fields are those of configs/reward_small.py.

source, prompt format and length of answers must be those of the run. For the story model of the package, as
configs/own.py:text has it: --config.source=stories260k --config.data.template=plain --config.data.task=stories
--config.data.max_new=48.
"""

import ml_collections

from configs import reward_small


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: the objectives' names, separated by commas."""
    names = [name for name in arg.split(",") if name]
    if not names:
        raise ValueError(
            "configs/reward_own.py takes the objectives' names after the colon: configs/reward_own.py:brief,kind"
        )
    c = reward_small.get_config()
    c.base_name = ""  # source
    c.out = "runs/reward_own/heads.safetensors"
    c.command = f"python -m meal_jax.reward_training.heads --config=configs/reward_own.py:{arg}"
    c.objectives = ml_collections.ConfigDict({name: f"own:{name}.jsonl" for name in names})
    d = c.data
    d.path = "pairs"
    d.name, d.licence = "own pairs", "as their owner says"
    d.limits = "A small model's reading of short answers: try it on answers that you can rank yourself."
    d.template = "chat"  # of prompts: chat, or plain for a base model, as config.data.template of the run
    d.template_options = ()  # variables of the chat template, as config.data.template_options of the run
    d.task = "assistant"  # the run's config.task, whose plain template it is
    return c
