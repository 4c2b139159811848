"""The command `python -m meal_jax.export`: a trained policy as a directory that servers read; see `model_directory`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meal_jax import command

TOLD = (*command.ERRORS, RuntimeError)
DTYPES = ("float32", "bfloat16")  # of `rounding`, which brings jax


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.export", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="WORKDIR", help="workdir of a run")
    parser.add_argument("--out", required=True, metavar="DIR", help="a directory that is not there yet")
    parser.add_argument("--kind", default="merged", choices=("merged", "adapter"))
    parser.add_argument(
        "--dtype", choices=DTYPES, help="storage type of merged weights; config.policy.param_dtype by default"
    )
    parser.add_argument("--preference", metavar="W,W", help="one to bake in, or to assume: 0.3,0.7")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. data.path=DIR, if moved"
    )
    parser.add_argument("--devices", type=int, default=1, help="devices to spread the weights over")
    command.main_with(write, parser, arguments, TOLD)


def write(args: argparse.Namespace) -> None:
    from meal_jax.export import model_directory
    from meal_jax.saved_run import open_run, read_config, read_preference

    config = read_config(args.checkpoint, args.set)
    preference = None if args.preference is None else read_preference(args.preference, config.objectives)
    model_directory.check(config, Path(args.out).expanduser(), args.kind, preference, args.dtype)
    run = open_run(args.checkpoint, config, args.devices)
    lost = model_directory.export(run, args.out, kind=args.kind, preference=preference, dtype=args.dtype)
    print(f"{args.out}: step {run.step} of {args.checkpoint}, {args.kind}. Read its README.md.")
    if lost is not None:
        print(lost.say())


if __name__ == "__main__":
    main()
