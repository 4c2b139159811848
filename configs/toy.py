"""The embedded benchmark: Meal beside the static method on a language whose Pareto front is known exactly.

python -m meal_jax.main --config=configs/toy.py --workdir=runs/toy
python -m meal_jax.main --config=configs/toy.py:k=3 --workdir=runs/toy3      three objectives
python -m meal_jax.main --config=configs/toy.py:base --workdir=runs/toy_base   from a base that speaks the language
python -m meal_jax.main --config=configs/toy.py:attainable --workdir=runs/attainable   some prompts attain one objective

On 2 CPU cores about four minutes in all, compilation included. Expect a share of the true hypervolume of 0.97 for Meal
and 0.93 for static targets (medians of five seeds; 0.97 to 0.99 and 0.85 to 0.96). All methods: docs/comparison_toy.md.

With three objectives, about seven minutes; seed 0 reached a hypervolume of 0.271 with Meal and 0.190 with static targets, of
0.403 under the whole front. An exact maximiser of the same 21 preferences has 0.235: where a trade-off is linear it jumps
from one corner to the next, and points that lie between, which Meal's do, cover more. So a share above 1 is no mistake.
"""

from meal_jax import config as base


def get_config(arg: str = ""):
    """`arg`: "" or "k=2" for two objectives, "k=3" for three; "base" for two, from a pretrained base; "attainable" for
    two, of which some prompts attain only one (meal_jax/tasks/toy_attainable.py)."""
    options = {"": 2, "k=2": 2, "k=3": 3, "base": 2, "attainable": 2}
    if arg not in options:
        raise ValueError(f"configs/toy.py takes k=2, k=3, base or attainable after the colon, not {arg!r}.")
    c = base.default()
    c.task = "toy_attainable" if arg == "attainable" else "toy"
    c.objectives = ("first", "second", "third")[: options[arg]]
    c.steps = 600
    c.batch_size = 16
    c.meal.candidates = 16
    c.meal.tau = 0.1
    c.meal.lam = 0.1
    c.meal.rho = 3.0  # with less, proposals drift from the targets here, and the front suffers
    c.meal.reuse_virtual = True  # a quarter off the step
    c.optim.lr = 1.5e-3
    # Of the methods beside it, chosen among a few values on seed 0 (docs/comparison_toy.md). The policy starts from random
    # weights: there is no language to keep, and little to learn from its first answers.
    c.ppo.kl = 0.005
    c.ppo.epochs = 4
    c.ppo.divisions = c.dpo.divisions = 4  # 5 policies for the 11 preferences: 3 answers each to a prompt, not 1
    c.dpo.beta = 0.03
    # A base's answers are worth learning from for longer
    c.dpo.sft_steps, c.ric.offline_steps = 20, 150 if arg == "base" else 20
    c.ric.keep_quantile, c.ric.buffer = 0.9, 16_384
    c.parm.r1 = c.parm.r2 = 16
    c.parm.alpha, c.parm.beta, c.parm.pairs = 16.0, 0.05, 8
    c.parm.decode_beta = 0.3 if arg == "base" else 0.1
    c.policy.pretrain = 400 if arg == "base" else 0
    c.policy.lora_targets = r"(attention|mlp)/"  # PARM's; the others have no adapters here
    if arg == "attainable":  # a priori, not tuned: what the net can add is room to move and a need to
        c.meal.tau = c.meal.lam = 0.3  # softer acceptance, under which a small weight teaches little; λ/τ as above
        c.meal.rho = 0.1  # proposals may leave the targets, in opposite directions by prompt
    c.eval.divisions = 10 if options[arg] == 2 else 5  # 11 or 21 preferences
    return c
