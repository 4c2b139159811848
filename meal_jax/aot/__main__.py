"""Compiles a run for devices that are not here, and says what it takes there.

    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=v5e:4x8
    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=h100:8

A TPU's compiler comes with `pip install libtpu` and needs no TPU. For GPUs, and with --dry-run for TPUs, the programs are
compiled for as many fake CPU devices instead: that shows shapes, shardings and collectives, and memory is by arithmetic.
Weights, data and reward models are not read: `hf/known.py` has their sizes. Fields by --config.name=value, as in training.
"""

import json
import os
from pathlib import Path

from absl import flags, logging

from meal_jax import command
from meal_jax.aot import topology


def compile_as_flags_say() -> int | None:
    f = flags.FLAGS
    if not f["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    found = run(f.config, f.topology, f["dry-run"].value, f.programs, f.quick)
    if f.out:
        Path(f.out).parent.mkdir(parents=True, exist_ok=True)
        Path(f.out).write_text(json.dumps(found, indent=1) + "\n")
    return None if found["fits"] else 1


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
    command.define_config()
    flags.DEFINE_string("topology", None, f"Devices:\n{topology.known()}", required=True)
    flags.DEFINE_boolean("dry-run", False, "Compile for fake CPU devices, memory by arithmetic.")
    flags.DEFINE_list("programs", [], "Compile these only: rollout, score, update, reward/NAME; step where it is one.")
    flags.DEFINE_boolean(
        "quick", False, "The compiler tries less hard: ten minutes become two, and memory is up to a quarter more."
    )
    flags.DEFINE_string("out", None, "Also write the report there, as JSON.")
    command.main(compile_as_flags_say)
