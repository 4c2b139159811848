"""Reward heads for configs/reddit_small.py: summary and faithful, on SmolLM2-135M-Instruct's hidden states.

Those that the package ships were made so (meal_jax/rewards/heads/reddit_small.md); this makes others, in runs/:

    python -m meal_jax.reward_training.heads --config=configs/reward_reddit_small.py \
        --config.data.path=DIRECTORY_OF_COMPARISONS --config.data.posts=POSTS.jsonl.gz

`summary` is fitted on people's choices between two summaries of a post (summarize-from-feedback), `faithful` on authors'
own summaries of posts against mismatched and entity-swapped ones (meal_jax/reward_training/faithful_pairs.py). Without
data.posts, the authors' summaries are those among the comparisons (policy "ref"). For a fine-tuned policy give its directory
in --config.source. Needs the weights (bash launch/fetch_smollm2.sh). Took 36
minutes on 2 busy CPU cores; held-out pair accuracy 0.66 (summary) and 0.94 (faithful), see docs/reddit_small.md.
"""

import ml_collections

from meal_jax.config import number


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.source = "weights/SmolLM2-135M-Instruct"  # Hugging Face directory or hub id of the frozen base
    c.base_name = "SmolLM2-135M-Instruct (as launch/fetch_smollm2.sh writes it)"  # what the heads file and card call it
    c.out = "runs/reward_reddit_small/heads.safetensors"  # heads; the card is written beside them
    c.cache = ""  # .npz file to keep the hidden states in, and to read them from when nothing else changed; "" = none
    c.features = "mean"  # what heads read of an answer's states: last, mean or last+mean
    c.batch_size = 8  # pairs at a time
    c.l2 = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of the penalty to choose from
    c.folds = 5  # of the cross-validation that chooses
    c.command = "python -m meal_jax.reward_training.heads --config=configs/reward_reddit_small.py"  # for the card

    c.objectives = ml_collections.ConfigDict()  # name of each head: its pairs, see meal_jax/reward_training/pairs.py
    c.objectives.summary = "comparisons"
    c.objectives.faithful = "faithful"

    c.data = d = ml_collections.ConfigDict()
    d.path = "data/summarize_from_feedback"  # comparisons: published files or prepared
    d.posts = ""  # JSON lines of posts with their authors' summaries, see meal_jax/data/tldr.py
    d.name = "summarize-from-feedback comparisons and Reddit posts with their authors' summaries"  # for the card
    d.licence = "comparisons Modified MIT, their posts CC-BY-4.0; other posts as their file says"  # for the card
    d.limits = (  # for the card
        "A small model's reading of short summaries: good for trying a method, not for judging summaries. The comparisons "
        "are of long posts, the policy's are short. Mismatched summaries are easy to tell apart and swapped facts hard; "
        "invented reasons, the usual unfaithfulness, are not among the pairs."
    )
    d.system = ""  # system message; must be the policy's
    d.prompt_length = 384  # tokens; pairs with a longer prompt are left out (posts that people compared are long)
    d.max_new = 32  # tokens an answer is cut to: as many as the policy writes
    d.pairs = number(1000)  # max pairs per objective, the first that fit; None = all
    return c
