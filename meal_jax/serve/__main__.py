"""The command `python -m meal_jax.serve`: a local page, and OpenAI's chat interface, on a run's newest checkpoint.

    python -m meal_jax.serve --checkpoint=runs/own

It listens on 127.0.0.1 alone and writes nothing: the run in the workdir may still be going. `page` has the routes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from meal_jax import command

ERRORS = (*command.ERRORS, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="WORKDIR", help="workdir of a run")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0 takes a free one (default: 8000)")
    parser.add_argument("--preference", metavar="W,W", help="of requests that name none; default: equal weights")
    parser.add_argument("--max_new", type=int, metavar="TOKENS", help="of an answer, at most; default: as trained")
    parser.add_argument("--rewards", action="store_true", help="also compute each answer's rewards, for the page")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. data.path=DIR, if moved"
    )
    parser.add_argument("--devices", type=int, default=1, help="devices to spread the weights over")
    command.main_with(serve, parser, arguments, ERRORS)


def serve(args: argparse.Namespace) -> None:
    from meal_jax.serve import server

    server.serve(args)


if __name__ == "__main__":
    main()
