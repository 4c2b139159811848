"""Your own prompts and rewards, under the settings with which a policy learns to follow a preference. Guide: docs/own.md.

    python -m meal_jax.main --config=configs/own.py:text --config.data.path=prompts.jsonl --workdir=runs/own \
        --config.objectives="('short','questions')" \
        --config.reward.sources="('python:mine.py:short','python:mine.py:questions')"

configs/own.py        a chat model answers each prompt (SmolLM2-135M-Instruct; another by --config.policy.source)
configs/own.py:text   a base model continues each prompt's text (the 260K-parameter story model of the package)

Adapters that read the preference and acceptance measured against the pool's own are what made one model follow preferences on
configs/stories.py (docs/stories.md). A run of :text takes a minute or two on two CPU cores; of the chat model see
configs/assistant_small.py.
"""

from meal_jax import config as base

KINDS = ("chat", "text")


def get_config(arg: str = "chat"):
    """`arg`: "chat" or "text"."""
    if arg not in KINDS:
        raise ValueError(f"configs/own.py takes {' or '.join(KINDS)} after the colon, not {arg!r}.")
    c = base.default()
    c.compare_with = ()
    c.objectives = ("first", "second")  # names of your rewards
    c.data.format, c.data.path = "own", "prompts.jsonl"
    if arg == "chat":
        c.task, c.policy.source, c.data.template = "assistant", "weights/SmolLM2-135M-Instruct", "chat"
        c.optim.lr, c.policy.chunk, c.sampling.draw = 5e-4, 16, "inverse"
        c.sampling.max_new, c.data.prompt_length = 32, 64  # tokens; a longer prompt is not used
        c.meal.targets, c.meal.passes = "edges", 2  # as in configs/assistant_small.py
        c.micro.gradient = 2  # prompts at a time, to save memory; None where more devices share a batch
    else:
        c.task, c.policy.source, c.data.template = "stories", "stories260k", "plain"
        c.optim.lr = 2e-3
        c.sampling.max_new, c.data.prompt_length = 48, 48  # as above
    c.steps, c.batch_size, c.optim.warmup = 40, 8, 10
    c.meal.candidates = 8
    c.meal.tau, c.meal.lam, c.meal.rho = 0.3, 0.1, 3.0
    c.meal.baseline = "pool"  # what is accepted less than 1/N of the time counts against
    c.meal.rejected = "proposed"  # the preference that was asked for
    c.meal.beta = 0.1  # keeps the language
    c.meal.length_norm = "constant"  # no pull to short answers
    c.meal.reuse_virtual = True
    c.policy.lora_rank = 12  # 2, 3 and 4 objectives divide it
    c.conditioning.kind = "adapter"
    c.eval.prompts, c.eval.batch_size, c.eval.every = 16, 8, 1_000_000  # before and after only
    c.eval.divisions = 4
    c.checkpoint.every = 20
    return c
