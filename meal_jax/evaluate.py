"""A trained state and a grid of preferences → the points of its front, with intervals, and answers to read.

Letters: E test prompts, B prompts at a time, M preferences, K objectives, T response tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from meal_jax.meal.step import Batch, Frozen, Setup, State, score
from meal_jax.methods import Method
from meal_jax.pareto import front
from meal_jax.rollout.sampling import Sampling
from meal_jax.tasks.task import Prompts, Task

PyTree = Any


class Answers(NamedTuple):
    """What a policy answered to every test prompt under every preference.

    Attributes:
      scores: [E, M, K] raw rewards.
      tokens, mask: [E, M, T] responses.
      proposals: [E, M, K], the preferences ŵ that the policy was conditioned on.
    """

    scores: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    proposals: np.ndarray


def answer_fn(setup: Setup, method: Method, sampling: Sampling) -> Callable:
    """The function to jit: (θ, φ, frozen, Batch [B], w [B, M, K], key) → Answers of the batch.

    The grid's preferences take the place of training's candidates, so a prompt is prefilled once for all of them.
    """

    def answer(theta: PyTree, phi: PyTree, frozen: Frozen, batch: Batch, w: jax.Array, key: jax.Array) -> Answers:
        rolled = method.respond(setup, theta, phi, frozen, batch, w, key, sampling)
        rewards = score(setup, frozen, batch, rolled.responses).rewards
        return Answers(rewards, rolled.responses.tokens, rolled.responses.mask, rolled.w_hat)

    return answer


def evaluate(
    answer: Callable,
    state: State,
    frozen: Frozen,
    prompts: Prompts,
    preferences: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    place: Callable[[Any], Any],
    tick: Callable[[int], None] = lambda prompts: None,
) -> Answers:
    """Answers every prompt under every preference.

    Args:
      answer: `answer_fn`, jitted.
      state, frozen: the policy.
      prompts: E test prompts.
      preferences: [M, K].
      batch_size: B; the last batch is filled up with repeated prompts whose answers are dropped.
      seed: of the samples; the same for every method and step, so that comparisons are paired.
      place: puts a batch's arrays on the devices.
      tick: called with the number of prompts done, for progress.

    Returns:
      Answers, NumPy.
    """
    rows = len(prompts.id)
    out = []
    for start in range(0, rows, batch_size):
        index = np.arange(start, start + batch_size) % rows
        batch = Batch(*(a[index] for a in prompts))
        w = np.broadcast_to(preferences.astype(np.float32), (batch_size, *preferences.shape))
        done = answer(state.policy, state.net, frozen, *place((batch, w)), jax.random.key(seed))
        out.append(jax.device_get(done))
        tick(min(start + batch_size, rows))
    return Answers(*(np.concatenate(parts)[:rows] for parts in zip(*out, strict=True)))


def summarise(answers: Answers, preferences: np.ndarray, task: Task, bootstrap: int) -> dict[str, Any]:
    """The front of one evaluation as plain numbers.

    Returns:
      points [M, K] with 95 % intervals over prompts, hypervolume and mean inner product with theirs, and, where
      the truth is known, the share of the hypervolume that an exact maximiser of the same preferences has.
    """
    scores = answers.scores.astype(np.float64)
    reference = task.reference
    points, low, high = front.bootstrap(scores, lambda mean: mean, bootstrap)
    volume, *volume_interval = front.bootstrap(scores, lambda mean: front.hypervolume(mean, reference), bootstrap)
    product, *product_interval = front.bootstrap(
        scores, lambda mean: front.mean_inner_product(mean, preferences), bootstrap
    )
    out = {
        "preferences": preferences.tolist(),
        "points": points.tolist(),
        "points_low": low.tolist(),
        "points_high": high.tolist(),
        "proposals": answers.proposals.mean(axis=0).astype(float).tolist(),
        "non_dominated": float(np.mean(front.non_dominated(points))),
        "hypervolume": float(volume),
        "hypervolume_interval": [float(v) for v in volume_interval],
        "reference": reference.tolist(),
        "mean_inner_product": float(product),
        "mean_inner_product_interval": [float(v) for v in product_interval],
        "prompts": len(scores),
    }
    if task.truth is not None:
        # As many points as the policy has, each the best there is for its preference: what a perfect policy would
        # score. The whole front holds more (a curve has more area under it than eleven of its points).
        exact = task.truth(preferences)
        out["exact_points"] = exact.tolist()
        out["true_hypervolume"] = front.hypervolume(exact, reference)
        out["share_of_true_hypervolume"] = float(volume) / out["true_hypervolume"]
        out["whole_front_hypervolume"] = front.hypervolume(true_front(task), reference)
    return out


def true_front(task: Task) -> np.ndarray:
    """The exact front [points, K]: the best average rewards over a lattice of preferences fine enough to miss none."""
    k = len(task.objectives)
    points = task.truth(front.grid(k, 4000 if k == 2 else 60))
    return np.unique(points, axis=0)


def sample_answers(answers: Answers, preferences: np.ndarray, task: Task, prompts: int) -> list[dict[str, Any]]:
    """Readable answers of the first test prompts at every preference, with their rewards."""
    out = []
    for e in range(min(prompts, len(answers.scores))):
        shown = [
            {
                "preference": [round(float(v), 3) for v in preferences[m]],
                "response": task.show(answers.tokens[e, m][answers.mask[e, m]]),
                "rewards": {
                    name: round(float(v), 3) for name, v in zip(task.objectives, answers.scores[e, m], strict=True)
                },
            }
            for m in range(len(preferences))
        ]
        out.append({"prompt": task.show(task.test.tokens[e][task.test.mask[e]]), "answers": shown})
    return out
