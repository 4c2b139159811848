"""The methods a run can train, each as the same few functions, so that training and evaluation know none by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from meal_jax.baselines import static
from meal_jax.meal import step as meal


class Method(NamedTuple):
    """A method.

    Attributes:
      label: for figures and tables.
      configure: the method's version of a run's configuration.
      init: (setup, θ, key) → state.
      rollout, score, update: the three parts of a step; signatures as in `meal.step`.
      step: their composition, for benchmarks whose rewards are computed on the device.
      respond: (setup, θ, φ, frozen, batch, w, key, sampling) → Rollout: answers preferences w, at evaluation.
    """

    label: str
    configure: Callable[[ml_collections.ConfigDict], ml_collections.ConfigDict]
    init: Callable = meal.init_state
    rollout: Callable = meal.rollout
    score: Callable = meal.score
    update: Callable = meal.update
    step: Callable = meal.step
    respond: Callable = meal.respond


METHODS: dict[str, Method] = {
    "meal": Method("Meal", lambda config: config),
    "static": Method("static targets", static.configure),
}


def get(name: str) -> Method:
    """The method called `name`.

    Raises:
      ValueError: there is none; lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"config.method={name!r} is not one of {', '.join(METHODS)}.")
    return METHODS[name]
