"""What teaches a policy to follow a preference on real text: how it reads one, and against what an answer is measured.

    python -m meal_jax.study --config=configs/study/stories_signal.py --workdir=runs/study_stories_signal

All runs have static targets, so that neither the net nor adaptation hides what these settings do. `adapter` is the base
configuration as it is: preferences in the adapters, acceptance less 1/N, stratified targets, one pass over a pool.
"""

from meal_jax.study import plan
from meal_jax.study.plan import Question, Variant

UNCENTRED = "meal.baseline=none"
CHANGES = {
    "uncentred": ("adapters, uncentred acceptance", (UNCENTRED,)),
    "leave_one_out": ("adapters, acceptance less the others' mean", ("meal.baseline=leave_one_out",)),
    "prefix": ("a prefix", ("conditioning.kind=prefix",)),
    "prefix_uncentred": ("a prefix, uncentred acceptance", ("conditioning.kind=prefix", UNCENTRED)),
    "text": ("numerals in the prompt", ("conditioning.kind=text",)),
    "adapter_prefix": ("adapters and a prefix", ("conditioning.kind=adapter+prefix",)),
    "adapter_text": ("adapters and numerals", ("conditioning.kind=adapter+text",)),
    "edges": ("adapters, targets at the edges", ("meal.targets=edges",)),
    "passes": ("adapters, two passes", ("meal.passes=2",)),
}


def get_config():
    c = plan.default()
    c.base = "configs/stories.py"
    c.changes = ("tensorboard=False",)
    c.variants = (
        Variant("adapter", "adapters", "static"),
        *(Variant(name, label, "static", changes) for name, (label, changes) in CHANGES.items()),
    )
    c.questions = tuple(Question(name, "adapter", name, "mean_inner_product") for name in CHANGES)
    c.drawn = ("adapter", "uncentred", "prefix", "text")
    return c
