"""placeholder"""

from meal_jax import config as base


def get_config(arg: str = ""):
    """`arg`: "" or "k=2" for two objectives, "k=3" for three."""
    options = {"": 2, "k=2": 2, "k=3": 3}
    if arg not in options:
        raise ValueError(f"configs/stories.py takes k=2 or k=3 after the colon, not {arg!r}.")
    k = options[arg]
    c = base.default()
    c.task = "stories"
    c.objectives = ("dialogue", "cheerful", "short")[:k]
    if k == 3:
        c.reward.sources = ("heads", "heads", "python:meal_jax.tasks.story_text:short")
    c.steps = 40
    c.batch_size = 8
    c.meal.candidates = 8
    c.meal.tau = 0.3
    c.meal.baseline = "pool"  # what is accepted less than the average counts against
    c.meal.lam = 0.2
    c.meal.rho = 3.0
    c.meal.beta = 0.1
    c.meal.length_norm = "constant"
    c.meal.reuse_virtual = True
    c.sampling.max_new = 48
    c.policy.source = "stories260k"
    c.policy.lora_rank = 16 if k == 2 else 18  # K divides it: each objective has a block
    c.conditioning.kind = "adapter"
    c.optim.lr = 2e-3
    c.optim.warmup = 10
    c.data.template = "plain"
    c.data.prompt_length = 48
    c.eval.prompts = 64
    c.eval.every = 1_000_000
    c.checkpoint.every = 20
    c.eval.divisions = 8 if k == 2 else 4
    c.eval.temperature = 0.7
    return c
