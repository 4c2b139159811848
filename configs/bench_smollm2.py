"""The step that throughput is measured on: SmolLM2-135M with LoRA, 32 sequences of 64 prompt and 64 response tokens, fp32.

    bash launch/fetch_smollm2.sh                                          # or --random: its shapes, random weights
    python -m meal_jax.bench --config=configs/bench_smollm2.py
    python -m meal_jax.bench --config=configs/bench_smollm2.py --vs=hf    # beside the same step in transformers and PEFT

Nothing is learned: prompts are random tokens and the reward a random linear map (meal_jax/tasks/synthetic.py). What to expect
of it, by machine: docs/performance.md.
"""

from meal_jax import config as base


def get_config():
    c = base.default()
    c.task = "synthetic"
    c.steps = 1000
    c.batch_size = 4
    c.meal.candidates = 8  # × batch_size = 32 sequences
    c.meal.reuse_virtual = True  # as the two shipped benchmarks have it
    c.data.prompt_length = 64
    c.sampling.max_new = 64
    c.policy.source = "weights/SmolLM2-135M-Instruct"
    c.policy.lora_rank = 16  # on q, k, v, o
    c.policy.remat = "dots"  # keeps matrix products alone: half the memory, and no slower (docs/performance.md)
    c.sampling.draw = "inverse"  # one random number a row, not one for each of 49,152 tokens
    c.rollout.weights = "merged"
    c.optim.lr = 5e-4
    c.optim.warmup = 10
    c.eval.prompts = 8
    c.eval.batch_size = 8
    return c
