"""A step that moves nothing where a reward is not a finite number, or too large; nor does any step after it.

A run reads a step's rewards only after it has dispatched the next step, which takes over the state's memory. A reward that the
device computes must therefore be checked on the device: the state is left as it is and marked by a negative count of steps,
which later steps read. `release` takes the mark away, and the state is to the bit the one before the faulty step.

Letters: B prompts, N candidates, K objectives.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax.meal.normalise import usable, what_is_wrong

PREFIX = "fault/"  # of metrics that are read by `fault_of` and written nowhere


class Fault(NamedTuple):
    """The first reward of a step that is not a finite number, or too large.

    Attributes:
      objective: its index.
      row: its response among the B · N of the step, candidates of a prompt side by side.
      value: NaN, an infinity, or beyond `normalise.LARGEST`.
      count, rows: how many of that objective's rewards are so, of how many.
    """

    objective: int
    row: int
    value: float
    count: int
    rows: int


def halting(update: Callable) -> Callable:
    """A method's `update` (see `meal.step.update`) that leaves the state as it is where a reward is not a finite number.

    Sound steps give the same bits. `lax.cond` runs one of its branches, so the check costs no second copy of the state.
    The metrics of a step that moved nothing are NaN, but for those that say why (`fault_of`).
    """

    def update_or_halt(setup: Any, state: Any, frozen: Any, batch: Any, rolled: Any, scores: Any):
        sound = (state.step >= 0) & jnp.all(usable(scores.rewards))
        operands = state, frozen, batch, rolled, scores
        go = functools.partial(update, setup)
        metrics = jax.eval_shape(go, *operands)[1]

        def halt(state: Any, *_: Any):
            marked = jnp.where(state.step < 0, state.step, -1 - state.step)
            return state.replace(step=marked), {
                name: jnp.full(m.shape, jnp.nan, m.dtype) for name, m in metrics.items()
            }

        new, values = jax.lax.cond(sound, go, halt, *operands)
        return new, values | _first_fault(scores.rewards)

    return update_or_halt


def _first_fault(rewards: jax.Array) -> dict[str, jax.Array]:
    """Fields of Fault as metrics, from rewards [..., K]; count is 0 where all are finite."""
    rows = rewards.reshape(-1, rewards.shape[-1])
    bad = ~usable(rows)
    objective = jnp.argmax(jnp.any(bad, axis=0))
    row = jnp.argmax(bad[:, objective])
    fields = Fault(objective, row, rows[row, objective], jnp.sum(bad[:, objective]), jnp.array(len(rows)))
    return {PREFIX + name: value.astype(jnp.float32) for name, value in fields._asdict().items()}


def fault_of(metrics: Mapping[str, float]) -> tuple[dict[str, float], Fault | None]:
    """A step's metrics without those of `halting`, and what stopped it; None if nothing did."""
    rest = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
    if not metrics.get(f"{PREFIX}count"):
        return rest, None
    values = {name: metrics[PREFIX + name] for name in Fault._fields}
    return rest, Fault(**{name: value if name == "value" else int(value) for name, value in values.items()})


def release(state: Any) -> Any:
    """The state before the faulty step, from the one that `halting` marked."""
    unmark = jax.jit(_unmarked, out_shardings=state.step.sharding)
    return state.replace(step=unmark(state.step))


def _unmarked(step: jax.Array) -> jax.Array:
    return -1 - step


def describe(fault: Fault, objectives: Sequence[str], sources: Sequence[str]) -> str:
    """A sentence on a fault.

    Args:
      fault: of a step.
      objectives: K names.
      sources: the function of each objective's reward, "" where it is the benchmark's own; or ().
    """
    source = sources[fault.objective] if sources else ""
    of = f"the reward of objective {objectives[fault.objective]!r}" + (f" ({source})" if source else "")
    return (
        f"{of} is {what_is_wrong(fault.value)} for {fault.count} of {fault.rows} responses; the first is row {fault.row}, "
        f"{fault.value}"
    )


def need_finite_metrics(
    values: Mapping[str, float], step: int, objectives: Sequence[str], checkpoints: str | os.PathLike
) -> None:
    """Refuses a step's metrics if one is not a finite number.

    Raises:
      FloatingPointError: names the objectives or the metrics; `checkpoints` is where the state from before the step is.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    rewards = [name for name in objectives if f"reward/{name}/mean" in bad]
    what = f"the reward of objective {', '.join(map(repr, rewards))}" if rewards else f"{', '.join(bad)}"
    raise FloatingPointError(
        f"step {step}: {what} is not a finite number. Training stopped; {checkpoints} keeps the last state "
        "from before it. Check what the reward returns for the newest responses, or lower config.optim.lr."
    )
