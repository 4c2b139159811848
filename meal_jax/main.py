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

    return (sft if f.config.stage == "sft" else train).run(f.config, f.workdir)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string("workdir", None, "Where the run writes; run again with the same to resume.", required=True)
    flags.DEFINE_integer(
        "stopped_status",
        0,
        "Exit status where SIGTERM ended the run early: 75, say, for a scheduler that starts it again.",
    )
    distributed.define_flags()
    command.main(run)
