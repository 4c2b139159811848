"""The claim on the embedded benchmark: Meal and its ablations from random weights, ten seeds each.

    python -m meal_jax.study --config=configs/study/toy.py --workdir=runs/study_toy
    python -m meal_jax.study --config=configs/study/toy.py --workdir=runs/study_toy --only=static,no_net,no_adapt,tau,lam

Static targets are Meal without the net and without adaptation. `meal.baseline` is none for both, so the questions "without
both" and "static with the same acceptance baseline" are this one. `pool` measures acceptance against 1/N in both, as in
configs/stories.py; Meal's `rejected=proposed` then counts what is rejected against the preference that was asked for. `half`
takes a cheaper estimate of the hypergradient, `meal.meta_fraction`.

λ has the paper's values and Meal's own 0.1; λ = 0 is `no_adapt`. The paper's text at hand does not give its unit of λ.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Curve, Question, Variant

ABLATIONS = (
    Variant("meal", "Meal"),
    Variant("static", "static targets", "static"),
    Variant("no_net", "Meal without the net", changes=("meal.net=False",)),
    Variant("no_adapt", "Meal without adaptation", changes=("meal.adapt=False",)),
    Variant("first_order", "first-order hypergradient", changes=("meal.hypergradient=first_order",)),
    Variant("direct", "no hypergradient", changes=("meal.hypergradient=none",)),
    Variant("likelihood", "likelihood as meta-objective", changes=("meal.meta=likelihood",)),
    Variant("sample", "acceptance drawn", changes=("meal.accept=sample",)),
    Variant("top1", "acceptance of the best", changes=("meal.accept=top1",)),
)
LAMBDAS = tuple(Variant(f"lam_{v}", f"Meal, λ = {v}", changes=(f"meal.lam={v}",)) for v in ("0.2", "0.3", "0.5", "1.0"))
BOTH = (("volume", "hypervolume"), ("utility", "mean_inner_product"))
STEADIER = ("grad_norm_variance", "utility_noise", "steps_to_90")


def taus(*values: str) -> tuple[Variant, ...]:
    """Meal at values of τ, all else as in the base."""
    return tuple(Variant(f"tau_{v}", f"Meal, τ = {v}", changes=(f"meal.tau={v}",)) for v in values)


def questions(measure: str = "hypervolume") -> tuple[Question, ...]:
    """Meal against each ablation in a measure, against static targets in the inner product too, and steadier training."""
    asked = [Question(v.name, "meal", v.name, measure) for v in (*ABLATIONS[1:], *LAMBDAS)]
    asked.insert(1, Question("static_utility", "meal", "static", "mean_inner_product"))
    return (*asked, *(Question(f"static_{name}", "meal", "static", name) for name in STEADIER))


def lambda_curve(lam: str) -> Curve:
    """The λ curve, where Meal's own λ is `lam`."""
    points = {"0": "no_adapt", lam: "meal"} | {v.name.removeprefix("lam_"): v.name for v in LAMBDAS}
    return Curve("lam", "meal.lam", tuple(sorted(points.items(), key=lambda point: float(point[0]))))


def tau_curve(variants: tuple[Variant, ...], tau: str) -> Curve:
    """The τ curve, where Meal's own τ is `tau`."""
    points = {tau: "meal"} | {v.name.removeprefix("tau_"): v.name for v in variants}
    return Curve("tau", "meal.tau", tuple(sorted(points.items(), key=lambda point: float(point[0]))))


def get_config():
    c = plan.default()
    c.base = "configs/toy.py"
    c.changes = ("eval.every=50", "tensorboard=False")  # close enough to interpolate between at equal tokens
    low_high = taus("0.03", "0.3", "1.0")
    pool = (
        Variant("meal_pool", "Meal against its pool", changes=("meal.baseline=pool", "meal.rejected=proposed")),
        Variant("static_pool", "static targets against their pool", "static", ("meal.baseline=pool",)),
    )
    half = Variant("half", "second level of half the prompts", changes=("meal.meta_fraction=0.5",))
    c.variants = (*ABLATIONS, *LAMBDAS, *low_high, *pool, half)
    c.questions = (
        *questions(),
        *(Question(f"pool_{name}", "meal_pool", "static_pool", measure) for name, measure in BOTH),
        *(Question(f"static_pool_{name}", "meal", "static_pool", measure) for name, measure in BOTH),
        *(Question(f"half_{name}", "meal", "half", measure) for name, measure in BOTH),
    )
    c.curves = (lambda_curve("0.1"), tau_curve(low_high, "0.1"))
    c.drawn = ("meal", "static", "no_net", "no_adapt")
    return c
