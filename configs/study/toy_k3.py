"""The claim on the embedded benchmark with three objectives: the variants and questions of configs/study/toy.py.

python -m meal_jax.study --config=configs/study/toy_k3.py --workdir=runs/study_toy_k3
"""

from configs.study import toy


def get_config():
    c = toy.get_config()
    c.base = "configs/toy.py:k=3"
    return c
