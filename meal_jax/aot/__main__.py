"""Compiles a run for other devices, and reports its memory, time and collectives there.

    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=v5e:4x8
    python -m meal_jax.aot --config=configs/reddit.py:summary,faithful --topology=h100:8

A TPU's compiler comes with `pip install libtpu` and needs no TPU. For GPUs, and for TPUs with --dry-run, the programs are
compiled for as many fake CPU devices: that shows shapes, shardings and collectives; memory is computed by the cost model.
Weights, data and reward models are not read: `hf/known.py` has their sizes. Fields are set by --config.name=value, as in
training.
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
    result = run(f.config, f.topology, f["dry-run"].value, f.programs, f.quick)
    if f.out:
        Path(f.out).parent.mkdir(parents=True, exist_ok=True)
        Path(f.out).write_text(json.dumps(result, indent=1) + "\n")
    return None if result["fits"] else 1


def run(config, name: str, dry: bool = False, only=(), quick: bool = False) -> dict:
    """Compiles and prints; returns the contents of --out.

    Raises:
      ValueError, FileNotFoundError, ModuleNotFoundError: a wrong name, a configuration that cannot run, no libtpu.
    """
    target = topology.parse(name)
    for_chip = target.tpu and not dry
    flag = "--xla_force_host_platform_device_count"
    if not for_chip and flag not in os.environ.get("XLA_FLAGS", ""):  # jax reads it when it first looks for devices
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={target.chips}".strip()
    import jax

    from meal_jax import methods
    from meal_jax.aot import abstract, compiler, report
    from meal_jax.config import check

    jax.config.update("jax_platforms", "cpu")  # else jax looks for a TPU, since libtpu is installed
    if quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    check(config)
    if config.stage == "sft":
        raise ValueError(
            "aot compiles a step of alignment; config.stage=sft has another: plan with --config.stage=align."
        )
    config = methods.configure(config.method, config)
    plan = abstract.plan(config, topology.devices(target, fake=not for_chip))
    programs = [program for program in compiler.programs(plan, config) if not only or program.name in only]
    if not programs:
        names = ", ".join(program.name for program in compiler.programs(plan, config))
        raise ValueError(f"--programs={','.join(only)} are none of this run's: {names}.")
    compiled = []
    for program in programs:
        print(f"compiling {program.name} …", flush=True)
        compiled.append(compiler.compile_program(program, plan))
    made = report.make_report(plan, config, target, compiled, for_chip, quick)
    report.show(made)
    return report.as_json(made)


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string("topology", None, f"Devices:\n{topology.known()}", required=True)
    flags.DEFINE_boolean("dry-run", False, "Compile for fake CPU devices; memory by the cost model.")
    flags.DEFINE_list(
        "programs", [], "Compile only these: rollout, score, update, reward/NAME; or step, if the step is one program."
    )
    flags.DEFINE_boolean(
        "quick", False, "Less compiler effort: two minutes instead of ten, and up to a quarter more memory."
    )
    flags.DEFINE_string("out", None, "File to write the report to, as JSON.")
    command.main(compile_as_flags_say)
