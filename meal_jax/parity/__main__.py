"""The command `python -m meal_jax.parity`: compares a checkpoint here with the same checkpoint in torch; see `comparison`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from meal_jax import command

PROMPTS = ("The capital of France is", "Once upon a time", "def add(a, b):", "1 + 1 =", "Dear Sir or Madam,")
TOLERANCE = (
    1e-3  # of a logit; the order of float32 sums changes logits of models with a billion parameters by about 1e-4
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory, hub id or GGUF file")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), help="texts to continue")
    parser.add_argument("--tokens", type=int, default=32, help="length of the continuations")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest difference that passes")
    command.main_with(compare, parser, arguments)


def compare(options: argparse.Namespace) -> None:
    from meal_jax.parity import comparison

    comparison.report(options.model, options.prompts, options.tokens, options.tolerance)


if __name__ == "__main__":
    main()
