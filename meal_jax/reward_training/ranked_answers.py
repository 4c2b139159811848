"""Preference pairs from answers that a reward has scored, so that a head can stand in for it inside the jitted step.

    python -m meal_jax.generate --checkpoint=WORKDIR --grid --prompts=prompts.jsonl --out=answers.jsonl
    python -m meal_jax.reward_training.ranked_answers --answers=answers.jsonl --prompts=prompts.jsonl --out=PAIRS
    python -m meal_jax.reward_training.heads --config=configs/reward_own.py:NAME,NAME --config.data.path=PAIRS

Of two answers to a prompt the one with more of a reward is chosen; answers that are alike in it make no pair. A prompt's pairs
are drawn at random from all that its answers make. PAIRS/NAME.jsonl holds those of the objective NAME, as
`data.own` reads them. They keep the split that their prompt names, so that no head is fitted on a run's test prompts. This is
how configs/stories.py:heads got its heads (docs/stories.md).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meal_jax import command
from meal_jax.data import files, own


def read(path: str, prompts: Sequence) -> list[list[tuple[str, dict[str, float]]]]:
    """(answer, rewards) of each prompt, from a file that `meal_jax.generate` wrote; `prompts` are (turns, split).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no answer, is of no prompt or of another one, or has other rewards than the first or one that is
        not finite.
    """
    count = len(prompts)
    out: list[list[tuple[str, dict[str, float]]]] = [[] for _ in range(count)]
    names = None
    for file in files.find(path, "It is what `python -m meal_jax.generate … --out=FILE` writes."):
        for source, row in files.rows(file):
            number, answer, rewards = row.get("row"), row.get("answer"), row.get("rewards")
            if not isinstance(number, int) or not isinstance(answer, str) or not isinstance(rewards, dict):
                raise ValueError(
                    f'{source} is no answer as meal_jax.generate writes it, with "row", "answer", "rewards".'
                )
            if not 0 <= number < count:
                raise ValueError(f"{source} answers prompt {number}, and the file of prompts has {count}, from 0.")
            asked = prompts[number][0][-1][1]
            if " ".join(asked.split()) not in " ".join(str(row.get("prompt", asked)).split()):
                raise ValueError(
                    f"{source} answers {row['prompt']!r:.80}, and row {number} of the file of prompts is {asked!r:.80}: take "
                    "the file that was answered, with its rows in the same order."
                )
            names = names or list(rewards)
            if list(rewards) != names or not all(
                isinstance(r, int | float) and math.isfinite(r) for r in rewards.values()
            ):
                raise ValueError(
                    f"{source} has the rewards {rewards}; each line has finite ones of {', '.join(names)}."
                )
            out[number].append((answer, rewards))
    return out


def pairs(
    answers: Sequence[tuple[str, Mapping[str, float]]], name: str, most: int, draw: random.Random
) -> list[tuple[str, str]]:
    """(chosen, rejected) of one prompt's answers by the reward `name`, at most `most` of them."""
    ranked = [
        (first, second) if ours[name] > theirs[name] else (second, first)
        for (first, ours), (second, theirs) in itertools.combinations(answers, 2)
        if ours[name] != theirs[name]
    ]
    return draw.sample(ranked, min(most, len(ranked)))


def write(args: argparse.Namespace) -> None:
    """Reads --answers and --prompts and writes a file of pairs for each objective.

    Raises:
      FileNotFoundError, ValueError: as `read`; a file is there already; or an objective has no pair.
    """
    if args.per_prompt < 1:
        raise ValueError(f"--per_prompt={args.per_prompt} must be at least 1.")
    prompts = own.read_prompts(args.prompts)
    answers, out = read(args.answers, prompts), Path(args.out).expanduser()
    names = next((list(rewards) for scored in answers for _, rewards in scored), [])
    if not names:
        raise ValueError(f"{args.answers} holds no answers.")
    places = {name: out / f"{name}.jsonl" for name in names}
    if there := [str(file) for file in places.values() if file.exists()]:
        raise ValueError(f"{', '.join(there)} is there already: remove it, or name another --out.")
    written = {name: list(rows(prompts, answers, name, args.per_prompt, args.seed)) for name in names}
    if empty := [name for name, lines in written.items() if not lines]:
        raise ValueError(
            f"No two answers to a prompt differ in {', '.join(empty)}: answer under more preferences (--grid), or with a "
            "higher --temperature."
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in written.items():
        places[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
        print(f"{places[name]}: {len(lines)} pairs")


def rows(prompts: Sequence, answers: Sequence, name: str, most: int, seed: int) -> Iterator[dict[str, Any]]:
    """The lines of an objective's file; `prompts` are (turns, split), "" where the prompt names none."""
    draw = random.Random(f"{seed} {name}")
    for (turns, split), scored in zip(prompts, answers, strict=True):
        for chosen, rejected in pairs(scored, name, most, draw):
            messages = [{"role": role, "content": text} for role, text in turns]
            yield {"messages": messages, "chosen": chosen, "rejected": rejected} | ({"split": split} if split else {})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m meal_jax.reward_training.ranked_answers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--answers", required=True, metavar="FILE", help="what meal_jax.generate wrote to --out")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="the prompts that it answered")
    parser.add_argument(
        "--out", required=True, metavar="DIRECTORY", help="where to write NAME.jsonl for each objective"
    )
    parser.add_argument("--per_prompt", type=int, default=6, metavar="PAIRS", help="of a prompt and objective, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of pairs")
    command.main_with(write, parser, arguments)


if __name__ == "__main__":
    main()
