"""The net's own gain where a proposal that reads the prompt should help (meal_jax/tasks/toy_attainable.py says why).

    python -m meal_jax.study --config=configs/study/toy_attainable.py --workdir=runs/study_attainable

The question is the net against no net: beside adaptation, and alone. `net_loose` lets proposals leave the targets freely and
`net_tight` hardly at all. `first_order` and `direct` ask what the hypergradient is worth where the net has something to say.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/toy.py:attainable"
    c.changes = ("eval.every=50", "tensorboard=False")
    c.variants = (
        Variant("meal", "Meal"),
        Variant("no_net", "Meal without the net", changes=("meal.net=False",)),
        Variant("no_adapt", "the net without adaptation", changes=("meal.adapt=False",)),
        Variant("static", "static targets", "static"),
        Variant("standard", "Meal, features standardised", changes=("meal.net_features=standard",)),
        Variant("net_loose", "Meal, ρ = 0.01", changes=("meal.rho=0.01",)),
        Variant("net_tight", "Meal, ρ = 3", changes=("meal.rho=3.0",)),
        Variant("first_order", "first-order hypergradient", changes=("meal.hypergradient=first_order",)),
        Variant("direct", "no hypergradient", changes=("meal.hypergradient=none",)),
    )
    c.questions = (
        Question("net", "meal", "no_net", "hypervolume"),
        Question("net_utility", "meal", "no_net", "mean_inner_product"),
        Question("net_alone", "no_adapt", "static", "hypervolume"),
        Question("static", "meal", "static", "hypervolume"),
        Question("standard", "standard", "meal", "hypervolume"),
        Question("standard_static", "standard", "static", "hypervolume"),
        Question("loose", "net_loose", "no_net", "hypervolume"),
        Question("tight", "net_tight", "no_net", "hypervolume"),
        Question("first_order", "meal", "first_order", "hypervolume"),
        Question("direct", "meal", "direct", "hypervolume"),
        Question("direct_net", "direct", "no_net", "hypervolume"),
    )
    c.drawn = ("meal", "no_net", "no_adapt", "static")
    return c
