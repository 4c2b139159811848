"""The net's own gain on real text, where beginnings differ in what they can attain (meal_jax/tasks/stories.py says how).

    python -m meal_jax.study --config=configs/study/stories_attainable.py --workdir=runs/study_stories_attainable

The policy reads the beginning too and could learn by itself what to serve. `layer` is the net as it reads prompts by default.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/stories.py:attainable"
    c.changes = ("tensorboard=False",)
    c.variants = (
        Variant("meal", "Meal"),
        Variant("static", "static targets", "static"),
        Variant("no_net", "Meal without the net", changes=("meal.net=False",)),
        Variant("layer", "Meal, features not standardised", changes=("meal.net_features=layer",)),
    )
    c.questions = (
        Question("static", "meal", "static", "mean_inner_product"),
        Question("static_hypervolume", "meal", "static", "hypervolume"),
        Question("net", "meal", "no_net", "mean_inner_product"),
        Question("net_hypervolume", "meal", "no_net", "hypervolume"),
        Question("features", "meal", "layer", "mean_inner_product"),
    )
    c.drawn = ("meal", "no_net", "static")
    return c
