"""Trains reward heads on pairs of answers: the command.

    python -m meal_jax.reward_training.heads --config=configs/reward_small.py

`fit_heads` does the work.
"""

from absl import flags

from meal_jax import command


def run() -> None:
    from meal_jax.reward_training import fit_heads

    fit_heads.run(flags.FLAGS.config)


if __name__ == "__main__":
    command.define_config()
    command.main(run, kind="heads")
