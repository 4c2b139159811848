"""The paper's figures by name: what makes each here, on what hardware, at what cost, and whether it was run.

    python -m meal_jax.reproduce --list
    python -m meal_jax.reproduce --figure=5a --scale=toy
    python -m meal_jax.reproduce --write=docs/reproduce.md

The text of the paper at hand (arXiv 2604.24178: its abstract and the start of its introduction) has no figure. Known of them
are the subjects: fronts over preferences on Reddit Summary and Helpful Assistant against four methods, the influence of λ and
that of τ. Which figure shows which benchmark, and what panels 2, 5 and 6 have, is our reading: a letter after these names the
whole figure. No expected value is given, since the text states none.
"""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from meal_jax import command, config_file

SCALES = ("toy", "small", "full")
METHODS = "--methods=meal,morlhf,soups,ric,parm"
LAMBDAS, TAUS = "--sweep=meal.lam:0.0,0.2,0.3,0.5,1.0", "--sweep=meal.tau:0.03,0.1,0.3,1.0"
CPU, GPU = "CPU, two cores", "one H100 of 80 GB, or 16 chips of TPU v5e"
CHIP = "h100"  # of the cost model's hours


class Cost(NamedTuple):
    """Hours of a command, and what they rest on; None where nothing is known."""

    hours: float | None
    basis: str


class Recipe(NamedTuple):
    """What makes a figure at a scale.

    Attributes:
      config: the configuration's file and argument; "" where there is no way.
      arguments: of `python`, but for --workdir; or, without a configuration, why there is no way.
      hardware: that it is made for.
      cost: of the whole command where known.
      status: run or not run, and where.
    """

    config: str
    arguments: tuple[str, ...]
    hardware: str
    cost: Cost
    status: str


class Figure(NamedTuple):
    """A figure: its name, what it shows as far as the source states, and its recipe by scale."""

    name: str
    shows: str
    recipes: dict[str, Recipe]


@functools.cache
def model_hours(config_name: str) -> float:
    """Hours of a run of Meal by the cost model: a lower bound on one chip, whose slowest resource is never idle.

    Counted are the steps, and the rollouts of the evaluations, of the longest prompts and answers. Reward models, loading and
    compiling are left out.
    """
    import dataclasses

    from meal_jax import build, cost, evaluate, roofline
    from meal_jax.aot import abstract
    from meal_jax.chips import CHIPS

    config = config_file.read_config_file(config_name)
    setup = build.build_setup(config, abstract.make_task(config))
    step = cost.of_setup(setup, config.batch_size, config.data.prompt_length)
    answers = dataclasses.replace(step, prompts=config.eval.batch_size, candidates=len(evaluate.grid(config)))

    def seconds(parts: dict[str, cost.Cost]) -> float:
        return sum(roofline.bound(part, CHIPS[CHIP]).seconds for part in parts.values())

    evaluations = config.steps // config.eval.every + 1
    batches = -(-config.eval.prompts // config.eval.batch_size)
    return (config.steps * seconds(cost.step(step)) + evaluations * batches * seconds(cost.rollout(answers))) / 3600


def figures() -> list[Figure]:
    """The figures that are known of, in their order."""
    fronts = "fronts over preferences 0.0, 0.1 … 1.0 against MORLHF, Rewarded Soups, RiC and PARM"
    pairs = {"3a": "harmless,helpful", "3b": "harmless,humor", "3c": "helpful,humor"}
    assistant = [
        Figure(
            name,
            f"{fronts}, on Helpful Assistant: {objectives.replace(',', ' and ')}",
            {
                "toy": _toy_fronts(":k=3", "run with one seed, all three pairs in one figure: docs/comparison_toy.md"),
                "small": _small_assistant()
                if name == "3a"
                else Recipe("", ("the package has no small reward for humor",), "–", Cost(None, "–"), "not run"),
                "full": _full_fronts(f"configs/assistant.py:{objectives}"),
            },
        )
        for name, objectives in pairs.items()
    ]
    reddit = Figure(
        "2",
        f"{fronts}, on Reddit Summary",
        {
            "toy": _toy_fronts("", "run with five seeds: docs/comparison_toy.md"),
            "small": Recipe(
                "configs/reddit_small.py",
                _compare("configs/reddit_small.py", METHODS, "--config.data.posts=POSTS.jsonl.gz"),
                CPU,
                Cost(None, "measured for Meal alone: 48 minutes on one core"),
                "Meal, static targets, Rewarded Soups and RiC were run with three seeds: docs/reddit_small.md",
            ),
            "full": _full_fronts("configs/reddit.py:summary,faithful"),
        },
    )
    return [
        reddit,
        *assistant,
        Figure(
            "5",
            "the influence of λ ∈ {1, 0.5, 0.3, 0.2}",
            _sweeps("lam", LAMBDAS, values=5, toy_values=6),
        ),
        Figure("6", "the influence of τ", _sweeps("tau", TAUS, values=4, toy_values=4)),
    ]


def _compare(config: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", "meal_jax.compare", f"--config={config}", *arguments)


def _toy_fronts(argument: str, status: str) -> Recipe:
    config = f"configs/toy.py{argument}"
    hours = (114 + 142 + 147 + 171 + 117) / 3600  # docs/comparison_toy.md, two objectives
    cost = Cost(None, "not measured") if argument else Cost(hours, "one core, measured: docs/comparison_toy.md")
    return Recipe(config, _compare(config, METHODS), CPU, cost, status)


def _small_assistant() -> Recipe:
    config = "configs/assistant_small.py"
    return Recipe(
        config,
        _compare(config, METHODS, "--config.data.path=HH_RLHF"),
        CPU,
        Cost(None, "measured for Meal alone: 39 minutes"),
        "run in 30 steps, Meal and static targets with four seeds, Rewarded Soups and RiC with three, MORLHF with one: "
        "docs/assistant_small.md; all four with a prefix: docs/comparison_assistant_small.md; PARM not run",
    )


def _full_fronts(config: str) -> Recipe:
    cost = Cost(model_hours(config), "Meal alone, lower bound by the cost model; the other methods are not in it")
    return Recipe(config, _compare(config, METHODS), GPU, cost, "not run")


def _sweeps(name: str, sweep: str, values: int, toy_values: int) -> dict[str, Recipe]:
    """λ or τ: on the toy by a study of ten seeds, else one seed."""
    study = ("-m", "meal_jax.study", "--config=configs/study/toy.py", f"--only={name}")
    full, small = "configs/assistant.py:harmless,helpful", "configs/assistant_small.py"
    return {
        "toy": Recipe(
            "configs/study/toy.py",
            study,
            CPU,
            Cost(toy_values * 10 * 114 / 3600 / 2, "two cores, from the 114 s of a run in docs/comparison_toy.md"),
            "run with ten seeds: docs/comparison_toy.md",
        ),
        "small": Recipe(
            small,
            _compare(small, "--methods=meal", sweep, "--config.data.path=HH_RLHF"),
            CPU,
            Cost(values * 39 / 60, "from the 39 minutes of a run in docs/assistant_small.md"),
            "not run",
        ),
        "full": Recipe(
            full,
            _compare(full, "--methods=meal", sweep),
            GPU,
            Cost(values * model_hours(full), "lower bound by the cost model"),
            "not run",
        ),
    }


def choose(name: str, scale: str) -> tuple[Figure, Recipe]:
    """The figure of a name and its recipe.

    Raises:
      ValueError: there is no such figure, or no way to make it at this scale.
    """
    known = {figure.name: figure for figure in figures()}
    base = re.sub(r"^([256])[a-z]$", r"\1", name)
    if base not in known:
        raise ValueError(f"--figure={name} is none of {', '.join(known)}.")
    recipe = known[base].recipes[scale]
    if not recipe.config:
        raise ValueError(f"figure {base} cannot be made at --scale={scale}: {recipe.arguments[0]}.")
    return known[base], recipe


def workdir(figure: Figure, scale: str) -> str:
    """Where a figure's runs are written. On the toy, both curves are one study's and figure 3 is one comparison."""
    if scale == "toy" and figure.name in ("5", "6"):
        return "runs/study_toy"
    name = "3" if scale == "toy" and figure.name.startswith("3") else figure.name
    return f"runs/figure{name}_{scale}"


def shown(figure: Figure, scale: str) -> str:
    """The command of a figure as a person types it, or why there is none."""
    recipe = figure.recipes[scale]
    if not recipe.config:
        return f"none: {recipe.arguments[0]}"
    return shlex.join(["python", *recipe.arguments, f"--workdir={workdir(figure, scale)}"])


def rows() -> list[tuple[str, ...]]:
    """The table: figure, scale, configuration, hardware, hours, basis of the hours, status."""
    table = []
    for figure in figures():
        for scale in SCALES:
            recipe = figure.recipes[scale]
            hours = "–" if recipe.cost.hours is None else f"{recipe.cost.hours:.2g}"
            config = f"`{recipe.config}`" if recipe.config else "–"
            table.append((figure.name, scale, config, recipe.hardware, hours, recipe.cost.basis, recipe.status))
    return table


def document() -> str:
    """The text of docs/reproduce.md."""
    table = [
        ("figure", "scale", "configuration", "hardware", "hours", "hours are", "status here"),
        ("---",) * 7,
        *rows(),
    ]
    names: dict[str, list[str]] = {}  # figures by command: some share one
    for figure in figures():
        for scale in SCALES:
            if figure.recipes[scale].config:
                names.setdefault(f"{shown(figure, scale)}    # {scale}:", []).append(figure.name)
    commands = "\n".join(f"{text} {', '.join(made)}" for text, made in names.items())
    lines = "\n".join(f"| {' | '.join(_linked(cell) for cell in row)} |" for row in table)
    subjects = "\n".join(f"- **{figure.name}**: {figure.shows}." for figure in figures())
    return DOCUMENT.format(subjects=subjects, table=lines, commands=commands, chip=CHIP.upper())


def _linked(cell: str) -> str:
    """Names of pages as links from docs/."""
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", cell)


DOCUMENT = """\
# The paper's figures

This page is written by `python -m meal_jax.reproduce --write=docs/reproduce.md`; a test keeps the two equal.

```bash
python -m meal_jax.reproduce --list
python -m meal_jax.reproduce --figure=5a --scale=toy
```

The second command runs what makes figure 5 on the embedded benchmark. Scales are `toy` (the embedded benchmark, a stand-in for
both of the paper's), `small` (SmolLM2-135M-Instruct on the paper's data) and `full` (Llama-2-7b).

## What the figures show

The text of the paper at hand, its abstract and the start of its introduction, has no figure. Which figure shows which
benchmark is our reading, and so are the pairs of objectives. What panels figures 2, 5 and 6 have is not known: a letter after
them names the whole figure. No expected value stands here, since that text states none. The paper's unit of λ is not known
either.

{subjects}

## What makes them, and what was run

Hours of the `full` scale are arithmetic by the cost model (`meal_jax/cost.py`) on one {chip} at its data sheet's peaks. They
are lower bounds without reward models. Hours of the other scales follow from measured times of single runs.

{table}

Names in capitals stand for files: HH_RLHF is a directory with hh-rlhf's `harmless-base` and `helpful-base`, and
`configs/reddit_small.py` describes POSTS. `python -m meal_jax.reproduce --figure=2 --scale=small -- FLAGS` passes more flags
on, such as `--config.data.posts=FILE`. The configurations of the `full` scale say which weights and data they need.

```bash
{commands}
```
"""


def run(options: argparse.Namespace) -> int:
    """Lists, writes or runs; returns the exit status. Errors as of `choose`."""
    logging.set_verbosity(logging.ERROR)  # the cost model reads no rewards, so their reference points do not matter
    if options.write:
        options.write.write_text(document())
        print(f"written: {options.write}")
        return 0
    if options.figure is None:
        for name, scale, config, hardware, hours, basis, status in rows():
            print(
                f"{name:3} {scale:6} {config.strip('`')}\n{'':11}{hardware}; hours: {hours} ({basis})\n{'':11}{status}"
            )
        return 0
    figure, _ = choose(options.figure, options.scale)
    text = shown(figure, options.scale)
    text += "".join(f" {shlex.quote(flag)}" for flag in options.flags)
    print(f"figure {figure.name}: {figure.shows}\n{text}", flush=True)
    return 0 if options.dry_run else subprocess.run([sys.executable, *shlex.split(text)[1:]], check=False).returncode


def _flag(text: str) -> str:
    if not text.startswith("--"):
        raise argparse.ArgumentTypeError(f"{text!r} is no flag of the figure's command")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.reproduce", description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="print the table")
    action.add_argument("--figure", help="run what makes a figure: 2, 3a, 3b, 3c, 5 or 6")
    action.add_argument("--write", type=Path, metavar="FILE", help="write the table as the page docs/reproduce.md")
    parser.add_argument("--scale", choices=SCALES, default="toy", help="toy by default")
    parser.add_argument("--dry_run", action="store_true", help="print the figure's command and do not run it")
    parser.add_argument(
        "flags", nargs="*", type=_flag, metavar="FLAG", help="after two dashes: more flags of the figure's command"
    )
    command.main_with(run, parser, arguments)


if __name__ == "__main__":
    main()
