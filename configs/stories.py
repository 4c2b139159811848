"""The embedded benchmark of real text: a 260K-parameter story model continues a story, with more speech or more cheer.

    python -m meal_jax.main --config=configs/stories.py --workdir=runs/stories
    python -m meal_jax.main --config=configs/stories.py:k=3 --workdir=runs/stories3      and with shorter sentences
    python -m meal_jax.main --config=configs/stories.py:attainable --workdir=runs/stories_attainable   some have no speech
    python -m meal_jax.main --config=configs/stories.py:heads --workdir=runs/stories_heads     rewards that were learned
    python -m meal_jax.answers_figure --run=runs/stories --out=stories.png

Model and prompts are in the package, rewards are counts that a reader can check (meal_jax/tasks/stories.py). The first two
are counted inside the jitted step. The third is a Python function of texts, so with k=3 the host scores between rollout and
update.

The settings come from a few trials on seed 0. Training and evaluation of Meal and static targets take some two minutes on
2 idle CPU cores. What to expect, over 13 seeds: docs/stories.md.
"""

from meal_jax import config as base


def get_config(arg: str = ""):
    """`arg`: "" or "k=2" for two objectives, "k=3" for three; "attainable" for two, of which some beginnings attain only
    one (meal_jax/tasks/stories.py); "heads" for two that heads give, fitted on ranked answers (docs/stories.md)."""
    options = {"": 2, "k=2": 2, "k=3": 3, "attainable": 2, "heads": 2}
    if arg not in options:
        raise ValueError(f"configs/stories.py takes k=2, k=3, attainable or heads after the colon, not {arg!r}.")
    k = options[arg]
    c = base.default()
    c.task = "stories"
    c.objectives = ("dialogue", "cheerful", "short")[:k]
    if k == 3:
        c.reward.sources = ("heads", "heads", "python:meal_jax.tasks.story_text:short")
        c.eval.reference = (0.0, 0.0, 0.0)  # no reward is below it
    c.steps = 40
    c.batch_size = 8
    c.meal.candidates = 8
    c.meal.tau = 0.3
    c.meal.baseline = "pool"  # what is accepted less than 1/N of the time counts against
    c.meal.rejected = "proposed"  # the preference that was asked for, not the one that suits it (docs/method.md)
    c.meal.lam = 0.1
    c.meal.rho = 3.0  # as in configs/toy.py
    c.meal.beta = 0.1  # keeps the language
    c.meal.length_norm = "constant"  # no pull to short answers
    c.meal.reuse_virtual = True  # saves a gradient
    c.sampling.max_new = 48  # some twenty words, which speech and narration share
    c.policy.source = "stories260k"
    c.policy.lora_rank = 16 if k == 2 else 18  # K divides it: each objective has a block
    c.conditioning.kind = "adapter"  # prefix and text hardly follow in as many steps (docs/stories_studies.md)
    c.optim.lr = 2e-3
    c.optim.warmup = 10
    c.data.template = "plain"  # a base model: the answer is the story's next paragraph
    c.data.prompt_length = 48
    c.eval.prompts = 64
    c.eval.every = 1_000_000  # before and after only
    c.checkpoint.every = 20
    c.eval.divisions = 8 if k == 2 else 4  # 9 or 15 preferences
    c.eval.temperature = 0.7  # so small a model makes up words at 1
    if arg == "heads":
        c.reward.heads = "stories"
    if arg == "attainable":
        c.objectives = ("fitting_dialogue", "fitting_cheerful")
        c.steps = 120
        c.meal.rho = 0.1  # as in configs/toy.py:attainable
        c.meal.net_features = "standard"  # else the net does not tell beginnings apart
        c.optim.net_lr = 3e-3  # this and the features: from five runs on seed 100
    return c
