"""The command `python -m meal_jax.answers_figure`: one prompt's answers at several preferences, as a figure.

    python -m meal_jax.answers_figure --run=runs/stories --out=docs/stories.png

Each row has the preference as a bar, the answer, and its rewards, from the run's pareto.json. On the benchmark `stories`, what
a reward counts is printed in that objective's colour: speech, and the narrator's cheerful words.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meal_jax import command
from meal_jax.json_files import read_object


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.answers_figure", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, metavar="WORKDIR", help="of a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .pdf or .svg")
    parser.add_argument(
        "--sample", type=int, default=0, help="which of the prompts in pareto.json (config.eval.samples)"
    )
    command.main_with(draw, parser, arguments)


def draw(options: argparse.Namespace) -> None:
    """Draws what the command line asks for.

    Raises:
      FileNotFoundError: the run is not finished.
      ValueError: there is no such sample, or pareto.json is damaged.
    """
    from meal_jax.pareto.answers_figure import choose, draw_answers  # it brings jax, which --help does not wait for
    from meal_jax.tasks import story_text

    path = options.run / "pareto.json"
    if not path.exists():
        raise FileNotFoundError(f"{options.run} holds no pareto.json: its run is not finished.")
    results = read_object(path)
    samples = results["samples"]
    if not 0 <= options.sample < len(samples):
        raise ValueError(f"--sample={options.sample}: the run wrote out samples 0 to {len(samples) - 1}.")
    sample = samples[options.sample]
    mark = {"stories": story_text.marked}.get(results["task"])
    draw_answers(options.out, sample["prompt"], choose(sample["answers"]), results["objectives"], mark)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
