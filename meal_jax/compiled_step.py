"""A method's step as the programs that training calls: one, or three where the host adds rewards that read text."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from meal_jax import methods
from meal_jax.meal.halt import halting
from meal_jax.meal.step import Batch, Frozen, Setup, State
from meal_jax.rewards.text import TextScorer
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import compiler, profiling


def compile_step(
    setup: Setup,
    method: methods.Method,
    scorer: TextScorer | None,
    place: Callable,
    out_shardings: Any,
    timed: bool = False,
    halts: bool = False,
) -> tuple[Callable, list[Callable]]:
    """The step as the loop calls it: (state, frozen, Batch, run) → (state, metrics), the state donated.

    It is one program where the device computes every reward. Else it is three, rollout, score and update, and between the
    last two the host adds the rewards that read text. `run` calls a program and times it (`profiling.Stopwatch.run`).

    Args:
      setup, method: what runs.
      scorer: of the rewards that read text, or None.
      place: puts a batch's arrays on the devices.
      out_shardings: of (state, metrics).
      timed: three programs in any case.
      halts: rewards of the device may not be finite numbers, see `meal.halt`. Where the host adds rewards it checks all.

    Returns:
      The step and its jitted programs.
    """
    if halts and scorer is None:
        method = method._replace(update=halting(method.update))
    # No step changes the key, and it stays outside of the program that returns the state: a typed key comes back from it
    # under another spelling of its sharding, P() for P(None), which jit's dispatch takes for another signature.
    donating = {
        "donate_argnums": 0,
        "out_shardings": (out_shardings[0].replace(key=None), out_shardings[1]),
        "compiler_options": compiler.options(out_shardings[1]),
    }
    if scorer is None and not timed:
        whole = jax.jit(without_key(functools.partial(method.step, setup)), **donating)

        def step(state: State, frozen: Frozen, batch: Batch, run: profiling.Run = profiling.untimed):
            new, metrics = run("device", whole, state.replace(key=None), state.key, frozen, batch)
            return new.replace(key=state.key), metrics

        return step, [whole]
    score = profiling.scoped("score", functools.partial(_score_for_host, setup, method))
    rollout = jax.jit(profiling.scoped("rollout", functools.partial(method.rollout, setup)))
    score = jax.jit(score, out_shardings=(None, out_shardings[1]))
    update = jax.jit(profiling.scoped("update", without_key(functools.partial(method.update, setup))), **donating)

    def add_text_rewards(scores: Any, for_host: Any) -> tuple[Any, dict[str, float]]:
        ids, tokens, mask, rewards = jax.device_get(for_host)
        rewards, cost = scorer.complete([scorer.texts[i] for i in ids.tolist()], tokens, mask, rewards)
        return scores._replace(rewards=place(rewards)), cost

    def step(state: State, frozen: Frozen, batch: Batch, run: profiling.Run = profiling.untimed):
        rolled = run("rollout", rollout, state, frozen, batch)
        scores, for_host = run("score", score, frozen, batch, rolled.responses)
        scores, cost = (scores, {}) if scorer is None else add_text_rewards(scores, for_host)
        new, metrics = run("update", update, state.replace(key=None), state.key, frozen, batch, rolled, scores)
        return new.replace(key=state.key), metrics | cost

    return step, [rollout, score, update]


def without_key(part: Callable) -> Callable:
    """(state, …) → (state, metrics) as (state without its key, key, …) → the same, that state without its key as well."""

    def step(state: State, key: jax.Array, *rest: Any):
        new, metrics = part(state.replace(key=key), *rest)
        return new.replace(key=None), metrics

    return step


def _score_for_host(setup: Setup, method: methods.Method, frozen: Frozen, batch: Batch, responses: Responses):
    """The device's scores, and beside them what the host reads, to be put whole on every process."""
    scores = method.score(setup, frozen, batch, responses)
    return scores, (batch.id, responses.tokens, responses.mask, scores.rewards)
