"""The Reddit benchmark at a small size: SmolLM2-135M-Instruct with LoRA sums up short posts, summary against faithful.

    bash launch/fetch_smollm2.sh
    python -m meal_jax.main --config=configs/reddit_small.py --config.data.posts=POSTS.jsonl.gz --workdir=runs/reddit_small

Posts are JSON lines with their authors' own summaries (meal_jax/data/tldr.py). By a hash of their ids the policy trains on
15 % of them and is evaluated on 15 %. Without data.posts they are those of the comparisons in data.path, of which few are as
short as data.prompt_length allows. Rewards are the heads shipped in meal_jax/rewards/heads, which were fitted on the other
70 % of umbrae/reddit-top-2.5-million's posts; configs/reward_reddit_small.py fits others.

Every method here starts from the instruction-tuned model. To start from one fine-tuned on the authors' summaries instead:

    python -m meal_jax.main --config=configs/reddit_small.py --config.stage=sft --config.steps=100 \
        --config.data.posts=POSTS.jsonl.gz --workdir=runs/reddit_sft

then fit heads with --config=configs/reward_reddit_small.py and --config.source=runs/reddit_sft/model, and train this with
--config.policy.source=runs/reddit_sft/model and --config.reward.heads=runs/reward_reddit_small/heads.safetensors; heads of the
model before it are refused.

Under an hour for Meal on one CPU core, and 4.4 GB. Expect the mean inner product to rise from -0.49 to 0.51, and with
static targets to 0.49, without copies of the post; every answer is then cut at sampling.max_new. With
--config.reward.missing_eos_penalty=1 most answers end, at lower rewards (docs/reddit_small.md, one seed).
"""

from meal_jax import config as base


def get_config():
    c = base.default()
    c.task = "reddit"
    c.objectives = ("summary", "faithful")
    c.steps = 30
    c.batch_size = 8
    c.meal.candidates = 4
    # As in configs/assistant_small.py, where a policy follows preferences under these settings.
    c.meal.targets = "edges"
    c.meal.passes = 2
    c.meal.tau = 0.3
    c.meal.lam = 0.1
    c.meal.rho = 3.0
    c.meal.baseline = "pool"
    c.meal.rejected = "proposed"
    c.meal.beta = 0.05  # keeps the language; free of another pass, since the rewards read π_ref's states anyway
    c.meal.length_norm = "constant"  # over |y| the policy is drawn to short answers
    c.meal.reuse_virtual = True  # saves a fifth of the update
    c.micro.gradient = 2  # prompts at a time; None where more devices share a batch
    c.conditioning.kind = "adapter"
    c.sampling.draw = "inverse"  # a vocabulary of 49,152: a tenth off the rollout
    c.sampling.max_new = 32  # the heads were fitted on summaries cut to as many tokens
    c.policy.source = "weights/SmolLM2-135M-Instruct"
    c.policy.lora_rank = 16
    c.policy.chunk = 16  # logits over 49,152 tokens are what fills the memory
    c.optim.lr = 5e-4
    c.optim.warmup = 10
    c.reward.heads = "reddit_small"
    c.reward.copy_penalty = 0.2  # the heads like a copy of the post, and a policy finds that within 60 updates
    c.data.path = "data/summarize_from_feedback"
    c.data.prompt_length = 160  # longer prompts are left out; about a quarter of posts of 100 to 1200 characters fit
    c.eval.prompts = 32
    c.eval.batch_size = 8
    c.eval.every = 1_000_000  # before and after only: an evaluation costs as much as a dozen steps
    c.checkpoint.every = 10
    return c
