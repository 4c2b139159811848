"""The command `python -m meal_jax.report WORKDIR`: writes the report of a finished run, or of a comparison.

    python -m meal_jax.report runs/toy

The report is one file, WORKDIR/report.html, that needs no network: the front, answers by preference, curves, budget and
configuration. Runs write it themselves when they finish.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meal_jax import command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "workdir", type=Path, metavar="WORKDIR", help="of a finished run, of meal_jax.compare or of meal_jax.study"
    )
    command.main_with(write_report, parser, arguments)


def write_report(options: argparse.Namespace) -> None:
    """Writes the report that the command line asks for; errors as of `write.write`."""
    from meal_jax.report.write import write  # it brings jax, which --help does not wait for

    print(f"report: {write(options.workdir)}")


if __name__ == "__main__":
    main()
