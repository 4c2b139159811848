"""Three objectives on the embedded benchmark of real text: Meal against static targets and without its net, 40 steps each.

    python -m meal_jax.study --config=configs/study/stories_k3.py --workdir=runs/study_stories_k3

The third reward is a Python function of texts, so the host scores between rollout and update.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/stories.py:k=3"
    c.changes = ("tensorboard=False",)
    c.variants = (
        Variant("meal", "Meal"),
        Variant("static", "static targets", "static"),
        Variant("no_net", "Meal without the net", changes=("meal.net=False",)),
    )
    c.questions = (
        Question("static", "meal", "static", "mean_inner_product"),
        Question("static_hypervolume", "meal", "static", "hypervolume"),
        Question("no_net", "meal", "no_net", "mean_inner_product"),
    )
    c.drawn = ("meal", "static")
    return c
