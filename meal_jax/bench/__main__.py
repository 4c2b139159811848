"""Step throughput, measured, as ratios and against what the machine can do.

    python -m meal_jax.bench --config=configs/bench_smollm2.py                    each phase, and a picture of the step
    python -m meal_jax.bench --config=configs/bench_smollm2.py --vs=hf            beside transformers and PEFT, alternating
    python -m meal_jax.bench --config=configs/bench_smollm2.py --bilevel          what the second level costs
    python -m meal_jax.bench --config=configs/bench_smollm2.py --sweep=batch      how cost grows with a size

`--out` gets bench.json and the figures. Weights are the configuration's own; --random draws them in their shapes. Fields are
changed as for training (--config.policy.dtype=bfloat16). Conventions: docs/performance.md.
"""

import os

from absl import app, flags, logging
from ml_collections import config_flags

from meal_jax.command import parse

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.name=value.")
VS = flags.DEFINE_enum("vs", "", ["", "hf"], "Also measure this peer, alternating with it.")
MERGED = flags.DEFINE_bool("merged", False, "With --vs=hf: the peer folds its adapters into the weights to sample.")
PHASES = flags.DEFINE_list("phases", "rollout,score,update,step", "Phases to measure.")
REPEATS = flags.DEFINE_integer("repeats", 10, "Times each is measured.", lower_bound=1)
OUT = flags.DEFINE_string("out", "runs/bench", "Where bench.json and figures go.")
RANDOM = flags.DEFINE_bool("random", False, "Random weights in the shapes of config.policy.source, without its files.")
BILEVEL = flags.DEFINE_bool("bilevel", False, "Meal's step over a plain policy step, for each hypergradient.")
SWEEP = flags.DEFINE_enum("sweep", "", ["", "batch", "candidates", "length", "objectives"], "Measure over this size.")
VALUES = flags.DEFINE_list("values", "", "Values of the sweep; some are chosen otherwise.")
LOOP = flags.DEFINE_integer("loop", 3, "Steps of the short training loop; 0 for none.", lower_bound=0)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    if sum(map(bool, (VS.value, BILEVEL.value, SWEEP.value))) > 1:
        raise app.UsageError("--vs, --bilevel and --sweep are measurements of their own: give one.")
    logging.set_verbosity(logging.WARNING)
    if VS.value:  # the peer has a process and an allocator of its own on the same device
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from meal_jax.bench import runs  # after the flags: a typing error should not wait for a device

    common = {"config": CONFIG.value, "out": OUT.value, "random": RANDOM.value, "repeats": REPEATS.value}
    try:
        if SWEEP.value:
            values = [int(v) for v in VALUES.value if v]
            runs.sweep(**common, over=SWEEP.value, values=values, phases=PHASES.value)
        elif BILEVEL.value:
            runs.bilevel(**common)
        else:
            runs.bench(**common, phases=PHASES.value, vs=VS.value, merged=MERGED.value, loop=LOOP.value)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        if logging.get_verbosity() <= logging.INFO:
            raise SystemExit(f"error: {error}") from None
        raise


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse)
