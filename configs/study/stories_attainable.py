"""The net's own gain on real text, where beginnings differ in what they can attain (meal_jax/tasks/stories.py says how).

    python -m meal_jax.study --config=configs/study/stories_attainable.py --workdir=runs/study_stories_attainable

The policy's text tells it whose story it is, so it can learn what to serve; the net can say so from the first step on.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/stories.py:attainable"
    c.changes = ("tensorboard=False",)
    c.variants = (
        Variant("meal", "Meal"),
        Variant("no_net", "Meal without the net", changes=("meal.net=False",)),
        Variant("static", "static targets", "static"),
        Variant("net_alone", "the net without adaptation", changes=("meal.adapt=False",)),
    )
    c.questions = (
        Question("static", "meal", "static", "mean_inner_product"),
        Question("static_hypervolume", "meal", "static", "hypervolume"),
        Question("net", "meal", "no_net", "mean_inner_product"),
        Question("net_hypervolume", "meal", "no_net", "hypervolume"),
        Question("net_alone", "net_alone", "static", "mean_inner_product"),
    )
    c.drawn = ("meal", "no_net", "static")
    return c
