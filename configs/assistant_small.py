"""A real small model on real prompts: SmolLM2-135M-Instruct with LoRA, harmless against helpful, hh-rlhf's prompts.

    bash launch/fetch_smollm2.sh
    python -m meal_jax.main --config=configs/assistant_small.py --config.data.path=DIRECTORY_OF_HH_RLHF \
        --workdir=runs/assistant_small

An hour of training for Meal on one CPU core, and 4 GB. Half as many steps are enough to follow preferences and to pass
Rewarded Soups (four seeds): docs/assistant_small.md. Rewards are the heads shipped in meal_jax/rewards/heads (its card says
what they are worth).
"""

from meal_jax import config as base


def get_config():
    c = base.default()
    c.task = "assistant"
    c.objectives = ("harmless", "helpful")
    c.steps = 60
    c.batch_size = 8
    c.meal.candidates = 4
    c.meal.targets = "edges"  # where answers tell the objectives apart; between, adapters interpolate
    c.meal.passes = 2  # as Rewarded Soups' experts take: sampling costs more than learning
    c.meal.tau = 0.3
    c.meal.lam = 0.1
    c.meal.rho = 3.0  # at 0.1 the proposals drifted to where the gain is
    c.meal.baseline = "pool"  # what is accepted less than 1/N of the time counts against
    c.meal.rejected = "proposed"  # the preference that was asked for
    c.meal.beta = 0.05  # keeps the language; free of another pass, since the rewards read π_ref's states anyway
    c.meal.length_norm = "constant"  # over |y| the policy ended in one three-token answer, which harmlessness rewards
    c.meal.reuse_virtual = True  # saves a fifth of the update
    # Prompts at a time: a ninth of the memory in 1.03 × the time (docs/performance.md); None where more devices share a batch
    c.micro.gradient = 2
    c.conditioning.kind = "adapter"  # four prefix embeddings had no meaning yet after 120 updates
    c.sampling.max_new = 32  # the heads were fitted on answers cut to as many tokens
    c.policy.source = "weights/SmolLM2-135M-Instruct"
    c.policy.lora_rank = 16
    c.policy.chunk = 16  # logits over 49,152 tokens are what fills the memory
    c.optim.lr = 5e-4
    c.optim.warmup = 10
    c.data.path = "data/hh_rlhf"  # holds harmless-base and helpful-base
    c.data.prompt_length = 64  # longer prompts are left out; about a third of hh-rlhf's fit
    c.eval.prompts = 64
    c.eval.batch_size = 8
    c.eval.every = 1_000_000  # before and after only: an evaluation costs as much as a dozen steps
    c.checkpoint.every = 20
    return c
