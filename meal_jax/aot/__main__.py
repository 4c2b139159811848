"""Compiles a run for devices that are not here, and says what it takes there.

    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=v5e:4x8
    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=h100:8

A TPU's compiler comes with `pip install libtpu` and needs no TPU. For GPUs, and with --dry-run for TPUs, the programs are
compiled for as many fake CPU devices instead: that shows shapes, shardings and collectives, and memory is by arithmetic.
Weights, data and reward models are not read: `models/known.py` has their sizes. Fields by --config.name=value, as in training.
"""

import json
import os
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from meal_jax.aot import topology
from meal_jax.command import parse

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; fields by --config.name=value.")
TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices:\n{topology.known()}")
DRY = flags.DEFINE_boolean("dry-run", False, "Compile for fake CPU devices, memory by arithmetic.")
PROGRAMS = flags.DEFINE_list(
    "programs", [], "Compile these only: rollout, score, update, reward/NAME; step where it is one."
)
QUICK = flags.DEFINE_boolean(
    "quick", False, "The compiler tries less hard: ten minutes become two, and memory is up to a quarter more."
)
OUT = flags.DEFINE_string("out", None, "Also write the report there, as JSON.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}. Fields are set by --config.name=value.")
    logging.set_verbosity(logging.ERROR)
    try:
        found = run(CONFIG.value, TOPOLOGY.value, DRY.value, PROGRAMS.value, QUICK.value)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    if OUT.value:
        Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
        Path(OUT.value).write_text(json.dumps(found, indent=1) + "\n")
    if not found["fits"]:
        raise SystemExit(1)


def run(config, name: str, dry: bool = False, only=(), quick: bool = False) -> dict:
    """Compiles and prints; returns what --out writes.

    Raises:
      ValueError, FileNotFoundError, ModuleNotFoundError: a wrong name, a configuration that cannot run, no libtpu.
    """
    there = topology.parse(name)
    ours = there.tpu and not dry
    flag = "--xla_force_host_platform_device_count"
    if not ours and flag not in os.environ.get("XLA_FLAGS", ""):  # read when jax first looks for devices
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={there.chips}".strip()
    import jax

    from meal_jax import methods
    from meal_jax.aot import abstract, compiler, report
    from meal_jax.config import check

    jax.config.update("jax_platforms", "cpu")  # else jax looks for the TPU that libtpu is for
    if quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    check(config)
    config = methods.configure(config.method, config)
    plan = abstract.plan(config, topology.devices(there, fake=not ours))
    programs = [one for one in compiler.programs(plan, config) if not only or one.name in only]
    if not programs:
        every = ", ".join(one.name for one in compiler.programs(plan, config))
        raise ValueError(f"--programs={','.join(only)} are none of this run's: {every}.")
    compiled = []
    for program in programs:
        print(f"compiling {program.name} …", flush=True)
        compiled.append(compiler.compile_program(program, plan))
    found = report.make(plan, config, there, compiled, ours, quick)
    report.show(found)
    return report.as_json(found)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse)
