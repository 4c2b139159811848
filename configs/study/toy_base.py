"""The claim on the embedded benchmark from a pretrained base: the variants and questions of configs/study/toy.py.

    python -m meal_jax.study --config=configs/study/toy_base.py --workdir=runs/study_toy_base

Each run fits the base anew, which takes seconds; it is the same in every run.
"""

from configs.study import toy


def get_config():
    c = toy.get_config()
    c.base = "configs/toy.py:base"
    return c
