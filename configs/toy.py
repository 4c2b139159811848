"""The embedded benchmark: Meal beside the static method on a language whose Pareto front is known exactly.

    python -m meal_jax.main --config=configs/toy.py --workdir=runs/toy
    python -m meal_jax.main --config=configs/toy.py:k=3 --workdir=runs/toy3      three objectives
"""

from meal_jax import config as base


def get_config(arg: str = ""):
    """`arg`: "" or "k=2" for two objectives, "k=3" for three."""
    options = {"": 2, "k=2": 2, "k=3": 3}
    if arg not in options:
        raise ValueError(f"configs/toy.py takes k=2 or k=3 after the colon, not {arg!r}.")
    c = base.default()
    c.task = "toy"
    c.objectives = ("first", "second", "third")[: options[arg]]
    return c
