"""Looks for what would stop a run, in seconds, before hours are spent.

    python -m meal_jax.doctor --config=configs/reddit.py:summary,faithful --workdir=runs/reddit

takes the flags of `meal_jax.main`, those of several processes too; every process is started as the run would be, and
process 0 prints what all have found. Nothing is downloaded, and nothing written but a small file in the workdir (in the
directory above it, if it is not there yet), which is removed again.

Each line is `ok`, `warn` (the run starts; read it), `fail`, with what to do about it, or `unknown` where it did not look. The
exit status is 1 on a fail. Where weights or data are missing nothing is compiled. What only the whole run can tell is not
checked: whether the step fits the devices' memory with what XLA needs beside the estimate.
"""

from __future__ import annotations

from absl import flags

from meal_jax import command
from meal_jax.runtime import distributed


def run() -> int | None:
    config, workdir = flags.FLAGS.config, command.workdir()
    if "policy" not in config or "mesh" not in config:
        raise ValueError("this --config is not of meal_jax.main, whose runs the doctor knows.")
    with distributed.end_together():
        try:
            distributed.start_as_flags_say()
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"fail  processes  {error}") from None

        from meal_jax.doctor.examine import examine  # here, as in `meal_jax.main`: JAX is not used before the start
        from meal_jax.doctor.finding import report

        findings = examine(config, workdir)
        if distributed.is_first():
            report(findings)
    return 1 if any(finding.status == "fail" for finding in findings) else None


if __name__ == "__main__":
    command.define_config()
    flags.DEFINE_string("workdir", None, "Where the run would write; runs/NAME of the configuration's file by default.")
    distributed.define_flags()
    command.main(run, kind=None)
