"""The embedded benchmark with objectives that only some prompts can attain: a proposal that reads the prompt should help.

Letters: B prompts, N candidates, K objectives, Y prompt types, M preferences.

Prompts, vocabulary and rewards are those of `tasks.toy`, times a table [Y, K] of what a type can attain. The first marker
decides: value m < K leaves objective m alone and makes every other reward 0; for all other values every objective is
attainable. With two objectives a quarter of the prompts can serve the first alone, a quarter the second alone, and half both.

Why a net that reads the prompt should help. Where only objective m is attainable, the best response is the same for every
preference with w_m > 0: serve m and end. But the chance to be accepted is softmax(w_m r_m / τ): under a small w_m all
candidates are accepted nearly alike and the policy learns little from them, although the choice is clear. A proposal with more
weight on m makes the same answers tell. The shift that is needed has opposite directions in the two groups of prompts and is
wrong in the third, so no function of the preference alone provides it: a net has to read the markers. Whether it does, and by
how much it helps beside adaptation (which pulls a preference towards what its own response attained), is for a study to tell:
configs/study/toy_attainable.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.data.templates import evaluation_set
from meal_jax.meal.step import Batch
from meal_jax.rewards import sources
from meal_jax.rollout.decode import Responses
from meal_jax.tasks import toy
from meal_jax.tasks.task import Task

NAME = "toy_attainable"


def attainable(objectives: int) -> np.ndarray:
    """1 where prompts of a type can attain an objective, else 0: [Y, K]."""
    first = np.arange(toy.TYPES) // toy.MARKERS  # the first marker's value
    alone = first[:, None] == np.arange(objectives)
    return np.where(first[:, None] < objectives, alone, True).astype(np.float32)


def reward(params: dict, batch: Batch, responses: Responses, hidden: None = None) -> jax.Array:
    """r [B, N, K] of responses; `params` holds those of `toy.reward` and "attainable" [Y, K]."""
    served = toy.reward(params, batch, responses, hidden)
    return served * params["attainable"][toy.prompt_types(batch.tokens)][:, None]


def best_points(prompts, preferences: np.ndarray, max_new: int) -> np.ndarray:
    """Average rewards [M, K] of an exact maximiser of each preference [M, K], by enumeration as in `toy.best_points`.

    Of equally good responses it takes the one of the largest sum of rewards, then the most even: an objective of no weight
    that costs nothing is served.
    """
    objectives, longest = preferences.shape[1], max_new - 1
    share, reach, gamma = toy.counts(objectives, longest) / longest, attainable(objectives), toy.gammas()
    total = np.zeros((len(preferences), objectives))
    for kind, rows in zip(*np.unique(toy.prompt_types(prompts.tokens, np), return_counts=True), strict=True):
        r = share ** gamma[kind] * reach[kind]
        tie = 1e-10 * np.round(r.sum(axis=1), 9) - 1e-13 * r.std(axis=1)  # below the last digit that is compared
        total += rows * r[np.argmax(np.round(preferences @ r.T, 9) + tie, axis=1)]
    return total / len(prompts.tokens)


def build(config) -> Task:
    """The benchmark for `config`: its fields and errors are those of `toy.build`, and at most 3 objectives.

    Raises:
      ValueError: as `toy.build`; or more objectives than there are groups of prompts for them.
    """
    task, objectives = toy.build(config), len(config.objectives)
    if objectives >= toy.MARKERS:
        raise ValueError(
            f"config.objectives names {objectives} rewards: {NAME} has a group of prompts for each and one for all, and "
            f"{toy.MARKERS} groups in all. Take at most {toy.MARKERS - 1}."
        )
    own = list(sources.own_objectives(config))  # objectives that no other reward replaces
    return task._replace(
        reward=reward,
        reward_params=task.reward_params | {"attainable": jnp.asarray(attainable(objectives)[:, own])},
        truth=lambda preferences: best_points(task.test, preferences, config.sampling.max_new),
        name=NAME,
        evaluation_set=evaluation_set(NAME, task.test.id, task.test.text),
    )
