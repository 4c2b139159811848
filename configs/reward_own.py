"""Reward heads on your own pairs of answers, for a run that computes them inside the jitted step. Guide: docs/own.md.

    python -m meal_jax.reward_training.heads --config=configs/reward_own.py:brief,kind --config.data.path=PAIRS
    python -m meal_jax.main --config=configs/own.py --config.objectives="('brief','kind')" \
        --config.reward.heads=runs/reward_own/heads.safetensors --config.data.path=prompts.jsonl

After the colon stand the objectives. PAIRS/brief.jsonl and PAIRS/kind.jsonl hold the pairs of each: JSON lines with prompt,
chosen and rejected. Some hundred pairs make a usable head. Those of a third of the prompts are held out to test it.

source, prompt format and length of answers must be those of the run. For the story model of the package, as
configs/own.py:text has it: --config.source=stories260k --config.data.template=plain --config.data.task=stories
--config.data.max_new=48.
"""

import ml_collections

from meal_jax.config import number


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: the objectives' names, separated by commas."""
    names = [name for name in arg.split(",") if name]
    if not names:
        raise ValueError(
            "configs/reward_own.py takes the objectives' names after the colon: configs/reward_own.py:brief,kind"
        )
    c = ml_collections.ConfigDict()
    c.source = (
        "weights/SmolLM2-135M-Instruct"  # Hugging Face directory or hub id of the frozen base, the policy's start
    )
    c.base_name = ""  # what the heads file and card call it; "" = source
    c.out = "runs/reward_own/heads.safetensors"  # heads; the card is written beside them
    c.cache = ""  # .npz file to keep the hidden states in, and to read them from when nothing else changed; "" = none
    c.features = "mean"  # what heads read of an answer's states: last, mean or last+mean
    c.batch_size = 8  # pairs at a time
    c.l2 = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of the penalty to choose from
    c.folds = 5  # of the cross-validation that chooses
    c.command = f"python -m meal_jax.reward_training.heads --config=configs/reward_own.py:{arg}"  # for the card

    c.objectives = ml_collections.ConfigDict()  # name of each head: its pairs, see meal_jax/reward_training/pairs.py
    for name in names:
        c.objectives[name] = f"own:{name}.jsonl"

    c.data = d = ml_collections.ConfigDict()
    d.path = "pairs"  # directory of those files
    d.posts = ""  # posts with their authors' summaries, for pairs of kind faithful
    d.name = "own pairs"  # for the card
    d.licence = "as their owner says"  # for the card
    d.limits = "A small model's reading of short answers: try it on answers that you can rank yourself."  # for the card
    d.template = "chat"  # of prompts: chat, or plain for a base model, as config.data.template of the run
    d.task = "assistant"  # the run's config.task, whose plain template it is
    d.system = ""  # system message; must be the policy's
    d.prompt_length = 96  # tokens; pairs with a longer prompt are left out
    d.max_new = 32  # tokens an answer is cut to: as many as the policy writes
    d.pairs = number()  # max pairs per objective, the first that fit; None = all
    return c
