"""The command `python -m meal_jax.generate`: what a trained policy answers to a prompt; see `answers`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from meal_jax import command

TOLD = (*command.ERRORS, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="WORKDIR", help="workdir of a run")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", help="what a person says; of the toy benchmark, tokens")
    asked.add_argument("--prompt_row", type=int, metavar="ROW", help="a row of the test prompts instead")
    asked.add_argument("--prompts", metavar="FILE", help="a file of JSON lines instead; needs --out")
    parser.add_argument("--out", metavar="FILE", help="where to write answers to --prompts, JSON lines")
    parser.add_argument("--preference", action="append", default=[], metavar="W,W", help="0.3,0.7; may be repeated")
    parser.add_argument("--grid", action="store_true", help="the preferences of the run's evaluation, as a table")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token; default: as evaluated")
    parser.add_argument("--top_k", type=int, help="default: as evaluated")
    parser.add_argument("--top_p", type=float, help="default: as evaluated")
    parser.add_argument("--max_new", type=int, metavar="TOKENS", help="of an answer, at most; default: as trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. data.path=DIR, if moved"
    )
    parser.add_argument("--devices", type=int, default=1, help="devices to spread the weights over")
    command.main_with(ask, parser, arguments, TOLD)


def ask(args: argparse.Namespace) -> None:
    from meal_jax.generate import answers

    answers.ask(args)


if __name__ == "__main__":
    main()
