"""Step throughput, measured, as ratios and against what the machine can do.

    python -m meal_jax.bench --config=configs/bench_smollm2.py                    each phase, and a picture of the step
    python -m meal_jax.bench --config=configs/bench_smollm2.py --vs=hf            beside transformers and PEFT, alternating
    python -m meal_jax.bench --config=configs/bench_smollm2.py --bilevel          what the second level costs
    python -m meal_jax.bench --config=configs/bench_smollm2.py --sweep=batch      how cost grows with a size

`--out` gets bench.json and the figures. Weights are the configuration's own; --random draws them in their shapes. Fields are
changed as for training (--config.policy.dtype=bfloat16). Conventions: docs/performance.md.
"""

import os

from absl import app, flags

from meal_jax import command


def run() -> None:
    f = flags.FLAGS
    if sum(map(bool, (f.vs, f.bilevel, f.sweep))) > 1:
        raise app.UsageError("--vs, --bilevel and --sweep are measurements of their own: give one.")
    if f.vs:  # the peer has a process and an allocator of its own on the same device
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from meal_jax.bench import runs

    common = {"config": f.config, "out": f.out, "random": f.random, "repeats": f.repeats}
    if f.sweep:
        runs.sweep(**common, over=f.sweep, values=[int(v) for v in f.values if v], phases=f.phases)
    elif f.bilevel:
        runs.bilevel(**common)
    else:
        runs.bench(**common, phases=f.phases, vs=f.vs, merged=f.merged, loop=f.loop)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_enum("vs", "", ["", "hf"], "Also measure this peer, alternating with it.")
    flags.DEFINE_bool("merged", False, "With --vs=hf: the peer folds its adapters into the weights to sample.")
    flags.DEFINE_list("phases", "rollout,score,update,step", "Phases to measure.")
    flags.DEFINE_integer("repeats", 10, "Times each is measured.", lower_bound=1)
    flags.DEFINE_string("out", "runs/bench", "Where bench.json and figures go.")
    flags.DEFINE_bool("random", False, "Random weights in the shapes of config.policy.source, without its files.")
    flags.DEFINE_bool("bilevel", False, "Meal's step over a plain policy step, for each hypergradient.")
    flags.DEFINE_enum("sweep", "", ["", "batch", "candidates", "length", "objectives"], "Measure over this size.")
    flags.DEFINE_list("values", "", "Values of the sweep; some are chosen otherwise.")
    flags.DEFINE_integer("loop", 3, "Steps of the short training loop; 0 for none.", lower_bound=0)
    command.main(run, (*command.ERRORS, RuntimeError))
