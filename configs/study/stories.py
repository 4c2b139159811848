"""The claim on the embedded benchmark of real text: Meal and its ablations, ten seeds each.

    python -m meal_jax.study --config=configs/study/stories.py --workdir=runs/study_stories

Here Meal's acceptance counts against the pool's own (meal.baseline=accepted) and that of static targets against 1/N, which
suits fixed preferences. `no_both` is Meal without the net and without adaptation, and so static targets under Meal's baseline;
`meal_pool` is Meal under theirs.
"""

from configs.study import toy
from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant


def get_config():
    c = plan.default()
    c.base = "configs/stories.py"
    c.changes = ("eval.every=10", "tensorboard=False")
    low_high = toy.taus("0.1", "1.0")
    own = (
        Variant("no_both", "static targets under Meal's baseline", changes=("meal.net=False", "meal.adapt=False")),
        Variant("meal_pool", "Meal under static targets' baseline", changes=("meal.baseline=pool",)),
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
