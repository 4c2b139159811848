"""Step throughput, measured, as ratios and against the limits of the machine.

    python -m meal_jax.bench --config=configs/bench_smollm2.py                    each phase, and a figure of the step
    python -m meal_jax.bench --config=configs/bench_smollm2.py --vs=hf            alternating with transformers and PEFT
    python -m meal_jax.bench --config=configs/bench_smollm2.py --bilevel          cost of the second level
    python -m meal_jax.bench --config=configs/bench_smollm2.py --sweep=batch      growth of cost with a size
    python -m meal_jax.bench --config=configs/bench_smollm2.py --lengths=benchmarks/hh_rlhf_lengths.txt      uneven responses

`--out` is the directory of bench.json and the figures. Weights are those of the configuration; --random draws random ones of
their shapes. Fields are changed as for training (--config.policy.dtype=bfloat16). Conventions: docs/performance.md.
"""

import os

from absl import app, flags

from meal_jax import command


def run() -> None:
    f = flags.FLAGS
    if sum(map(bool, (f.vs, f.bilevel, f.sweep))) > 1 or (f.lengths and (f.bilevel or f.sweep)):
        raise app.UsageError(
            "--vs, --bilevel and --sweep are separate measurements: give one; --lengths goes with --vs."
        )
    if f.vs:  # the peer has its own process and allocator on the same device
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    from meal_jax.bench import peer, runs, uneven

    sampler = peer.Sampler(f.merged, f.cache)
    common = {"config": f.config, "out": f.out, "random": f.random, "repeats": f.repeats}
    if f.lengths:
        uneven.bench(**common, lengths=f.lengths, vs=f.vs, sampler=sampler)
    elif f.sweep:
        runs.sweep(**common, over=f.sweep, values=[int(v) for v in f.values if v], phases=f.phases)
    elif f.bilevel:
        runs.bilevel(**common)
    else:
        runs.bench(**common, phases=f.phases, vs=f.vs, sampler=sampler, loop=f.loop)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_enum("vs", "", ["", "hf"], "Also measure this peer, in alternation.")
    flags.DEFINE_bool("merged", False, "With --vs=hf: the peer folds its adapters into the weights to sample.")
    flags.DEFINE_enum(
        "cache", "dynamic", ["dynamic", "static", "compiled"], "With --vs=hf: the peer's cache, see peer_hf.py."
    )
    flags.DEFINE_list("phases", "rollout,score,update,step", "Phases to measure.")
    flags.DEFINE_integer("repeats", 10, "Repeats of each measurement.", lower_bound=1)
    flags.DEFINE_string("out", "runs/bench", "Directory of bench.json and the figures.")
    flags.DEFINE_bool("random", False, "Random weights in the shapes of config.policy.source, without its files.")
    flags.DEFINE_bool("bilevel", False, "Meal's step over a plain policy step, for each hypergradient.")
    flags.DEFINE_enum("sweep", "", ["", "batch", "candidates", "length", "objectives"], "Measure over this size.")
    flags.DEFINE_list("values", "", "Values of the sweep; by default a list per size.")
    flags.DEFINE_string("lengths", "", "Rollouts whose responses end after numbers of tokens drawn from this file.")
    flags.DEFINE_integer("loop", 3, "Steps of the short training loop; 0 for none.", lower_bound=0)
    command.main(run, (*command.ERRORS, RuntimeError))
