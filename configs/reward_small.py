"""Reward heads for configs/assistant_small.py: harmless and helpful, on SmolLM2-135M-Instruct's hidden states.

    python -m meal_jax.reward_training.heads --config=configs/reward_small.py --config.data.path=DIRECTORY_OF_HH_RLHF

Needs the weights (bash launch/fetch_smollm2.sh) and hh-rlhf's directories harmless-base and helpful-base. About 2,100
pairs (the `test` files alone); 17 minutes on 2 busy CPU cores, 3 GB of memory.
"""

import ml_collections

from meal_jax.config import number


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.source = "weights/SmolLM2-135M-Instruct"  # Hugging Face directory or hub id of the frozen base
    c.base_name = "SmolLM2-135M-Instruct (as launch/fetch_smollm2.sh writes it)"  # what the heads file and card call it
    c.out = "runs/reward_small/heads.safetensors"  # heads; the card is written beside them
    c.cache = ""  # .npz file to keep the hidden states in, and to read them from when nothing else changed; "" = none
    c.features = (
        "mean"  # what heads read of an answer's states: last, mean or last+mean (mean does best in cross-validation)
    )
    c.batch_size = 8  # pairs at a time
    c.l2 = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of the penalty to choose from
    c.folds = 5  # of the cross-validation that chooses
    c.command = "python -m meal_jax.reward_training.heads --config=configs/reward_small.py"  # for the card

    c.objectives = ml_collections.ConfigDict()  # name of each head: its pairs, see meal_jax/reward_training/pairs.py
    c.objectives.harmless = "hh_rlhf:harmless-base"
    c.objectives.helpful = "hh_rlhf:helpful-base"

    c.data = d = ml_collections.ConfigDict()
    d.path = "data/hh_rlhf"  # where those directories are
    d.posts = ""  # posts with their authors' summaries, for pairs of kind faithful
    d.name = "Anthropic hh-rlhf"  # for the card
    d.licence = "MIT"  # for the card
    d.limits = (  # for the card
        "A small model's reading of short English answers, right in about two of three pairs: good for trying a method, not "
        "for judging whether an answer is harmless or helpful. Pairs are of crowd workers' 2021–22 preferences; the prompts "
        "are short ones."
    )
    d.system = ""  # system message; must be the policy's
    d.prompt_length = 96  # tokens; pairs with a longer prompt are left out
    d.max_new = 32  # tokens an answer is cut to: as many as the policy writes
    d.pairs = number()  # max pairs per objective, the first that fit; None = all
    return c
