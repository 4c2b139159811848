"""A study's entries: what does not hold together is refused by name, and --only takes what it needs."""

import importlib
from pathlib import Path

import pytest

from meal_jax.pareto import paired
from meal_jax.study import measures, plan
from meal_jax.study.plan import Curve, Question, Variant

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "configs/study").glob("*.py"))


def study():
    c = plan.default()
    c.base = "configs/toy.py"
    c.variants = (Variant("meal", "Meal"), Variant("static", "static targets", "static"), Variant("no_net", "no net"))
    c.questions = (Question("q1", "meal", "static", "hypervolume"), Question("q2", "meal", "no_net", "hypervolume"))
    c.curves = (Curve("lam", "meal.lam", (("0", "static"), ("0.1", "meal"))),)
    c.drawn = ("meal", "no_net")
    return c


def test_only_takes_the_variants_that_its_questions_and_curves_need():
    c = study()
    plan.check(c)
    assert plan.choose(c, []) is c
    chosen = plan.choose(c, ["q1"])
    assert [v.name for v in chosen.variants] == ["meal", "static"] and chosen.drawn == ("meal",)
    assert [q.name for q in chosen.questions] == ["q1"] and chosen.curves == ()
    assert [v.name for v in plan.choose(c, ["q2", "lam"]).variants] == ["meal", "static", "no_net"]
    with pytest.raises(ValueError, match="--only names q3, which is no question or curve: q1, q2, lam"):
        plan.choose(c, ["q1", "q3"])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("variants", (Variant("meal", "a"), Variant("meal", "b")), "more than one variant of the name meal"),
        ("variants", (Variant("a/b", "a"),), "'a/b' cannot be a variant's name"),
        ("variants", (Variant("..", "a"),), "'..' cannot be a variant's name"),
        ("questions", (Question("q", "meal", "sttic", "hypervolume"),), "q names sttic, which is not a variant: meal"),
        ("drawn", ("nobody",), "drawn names nobody"),
        ("seeds", 0, "seeds=0 must be at least 1"),
    ],
)
def test_what_does_not_hold_together_is_refused(field, value, words):
    c = study()
    c[field] = value
    with pytest.raises(ValueError, match=words):
        plan.check(c)


@pytest.mark.parametrize("name", STUDIES)
def test_a_shipped_study_holds_together_and_its_seeds_can_answer_it(name):
    c = importlib.import_module(f"configs.study.{name}").get_config()
    plan.check(c)
    measures.check(c)
    assert (ROOT / c.base.partition(":")[0]).exists() and c.seeds >= 10
    assert paired.smallest_p(c.seeds, len(c.questions)) < 0.05
    used = {v for q in c.questions for v in (q.first, q.other)} | {v for curve in c.curves for _, v in curve.points}
    assert used == {v.name for v in c.variants}  # nothing is trained that no one asks for
