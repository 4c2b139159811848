"""What was never seen in training: types of beginnings, and preferences.

    python -m meal_jax.study --config=configs/study/generalisation.py --workdir=runs/study_generalisation

`types` trains on other heroes, names and events than it is evaluated on. `gap` never draws a target whose first weight lies
between 0.25 and 0.75, and asks for those. A static policy learns nothing there but by the form of its conditioning; Meal's
adapted preferences may enter the gap. The runs without a gap say what its preferences are worth to a policy that was
trained on them.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant

TYPES, GAP = "data.split=types", "meal.gap=(0.25, 0.75)"


def get_config():
    c = plan.default()
    c.base = "configs/stories.py"
    c.changes = ("tensorboard=False",)
    c.gap = (0.25, 0.75)
    c.variants = (
        Variant("meal", "Meal"),
        Variant("static", "static targets", "static"),
        Variant("meal_types", "Meal, other types", changes=(TYPES,)),
        Variant("static_types", "static targets, other types", "static", (TYPES,)),
        Variant("meal_gap", "Meal, with a gap", changes=(GAP,)),
        Variant("static_gap", "static targets, with a gap", "static", (GAP,)),
    )
    c.questions = (
        Question("types", "meal_types", "static_types", "mean_inner_product"),
        Question("gap", "meal_gap", "static_gap", "gap_inner_product"),
        Question("gap_whole", "meal_gap", "static_gap", "mean_inner_product"),
        Question("meal_lost", "meal_gap", "meal", "gap_inner_product"),
        Question("static_lost", "static_gap", "static", "gap_inner_product"),
    )
    c.drawn = ("meal", "meal_gap", "static_gap")
    return c
