"""Trains a reward model, a whole classifier, on pairs of responses: the command.

    python -m meal_jax.reward_training.model --config=configs/reward_model.py --config.source=DIR --config.data.path=PAIRS

`fit_model` does the work.
"""

from absl import flags

from meal_jax import command


def run() -> None:
    from meal_jax.reward_training import fit_model

    fit_model.run(flags.FLAGS.config)


if __name__ == "__main__":
    command.define_config()
    command.main(run, kind="model")
