"""The command line: `python -m meal_jax.main --config=configs/toy.py --workdir=runs/toy`.

It parses flags and calls `train.run`, or `sft.run` for `--config.stage=sft`, nothing more, so that everything can be
imported and called from elsewhere.
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from meal_jax.command import parse
from meal_jax.runtime import distributed

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.name=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes; run again with the same to go on.")
STOPPED = flags.DEFINE_integer(
    "stopped_status", 0, "Exit status where SIGTERM ended the run early: 75, say, for a scheduler that starts it again."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # with --verbosity=1 an error shows where it arose
    import jax  # after the flags: a typing error should not wait for a device

    if os.environ.get("MEAL_CACHE", "1") != "0":  # compiled programs are kept between runs
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/meal_jax/xla"))
    with distributed.end_together():
        try:
            distributed.start_as_flags_say()  # before anything else that uses JAX

            from meal_jax import sft, train

            done = (sft if CONFIG.value.stage == "sft" else train).run(CONFIG.value, WORKDIR.value)
        except (ValueError, FileNotFoundError, FloatingPointError) as error:
            if logging.get_verbosity() <= logging.INFO:
                raise SystemExit(f"error: {error}") from None
            raise
    if done is None:
        raise SystemExit(STOPPED.value)


if __name__ == "__main__":
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
