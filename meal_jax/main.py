"""The command line: `python -m meal_jax.main --config=configs/toy.py --workdir=runs/toy`.

It parses flags and calls `train.run`, or `sft.run` for `--config.stage=sft`, nothing more, so that everything can be
imported and called from elsewhere.
"""

from typing import Any

from absl import flags

from meal_jax import command
from meal_jax.runtime import distributed


def run() -> int | None:
    f = flags.FLAGS
    with distributed.end_together():
        done = command.attempt(train_from_flags)  # a message, also where the other processes have to end with this one
    return f.stopped_status if done is None else None


def train_from_flags() -> Any:
    f = flags.FLAGS
    distributed.start_as_flags_say()  # before anything else that uses JAX

    from meal_jax import sft, train
    from meal_jax.config import check
    from meal_jax.runtime.metrics import Preemption

    Preemption.status = f.stopped_status
    check(f.config)
    need_inputs(f.config)
    return (sft if f.config.stage == "sft" else train).run(f.config, command.workdir())


def need_inputs(config: Any) -> None:
    """Refuses a run that lacks weights, rewards or data, with all that is missing in one message.

    Raises:
      FileNotFoundError: lists it, with the command for each.
    """
    from meal_jax.doctor import files

    failures = files.missing(config)
    error = None
    if failures:
        lines = "\n".join(f"  {f.name}: {f.detail}\n    → {f.advice}" for f in failures)
        error = FileNotFoundError(f"this run cannot start here yet:\n{lines}\nNothing was written.")
    distributed.agree(error, "Finding the run's inputs")


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string(
        "workdir",
        None,
        "Where the run writes, runs/NAME of the configuration's file by default; the same again resumes.",
    )
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status where SIGTERM ended the run early: 75, say, for a scheduler that starts it again.",
    )
    distributed.define_flags()
    command.main(run)
