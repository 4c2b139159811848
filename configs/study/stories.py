"""The claim on the embedded benchmark of real text: Meal and its ablations, ten seeds each, 120 steps in place of 40.

    python -m meal_jax.study --config=configs/study/stories.py --workdir=runs/study_stories

Static targets have Meal's settings, baseline included, so `static` is Meal without the net and without adaptation. Two
variants let rejected responses count against the preference that they embody, under either baseline.
"""

from configs.study import toy
from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/stories.py"
    c.changes = (
        "steps=120",
        "tensorboard=False",
    )  # an answer has as good as always 48 tokens: equal updates, equal tokens
    low_high = toy.taus("0.1", "1.0")
    against_own = "meal.rejected=adapted"
    own = (
        Variant("rejected_adapted", "Meal, rejected under their adapted preference", changes=(against_own,)),
        Variant(
            "accepted",
            "the same, measured against the pool's own acceptance",
            changes=(against_own, "meal.baseline=accepted"),
        ),
    )
    c.variants = (*toy.ABLATIONS, *own, *toy.LAMBDAS, *low_high)
    c.questions = (
        *toy.questions("mean_inner_product"),
        Question("static_hypervolume", "meal", "static", "hypervolume"),
        *(Question(v.name, "meal", v.name, "mean_inner_product") for v in own),
    )
    c.questions = tuple(q for q in c.questions if q.name != "static_utility")  # `static` asks the same here
    c.curves = (toy.lambda_curve("0.1"), toy.tau_curve(low_high, "0.3"))
    c.drawn = ("meal", "static", "no_net", "no_adapt")
    return c
