"""The beginnings of stories that the benchmark `stories` trains and evaluates on, written from a few templates.

    python -m meal_jax.tasks.story_prompts --out=meal_jax/tasks/story_prompts.jsonl

writes the file that the package holds: TRAIN prompts to train on and TEST others to evaluate on, all different, one JSON line
{"prompt": …, "split": "train" or "test"} each. Every word is one that the story model uses often.

    python -m meal_jax.tasks.story_prompts --types --out=meal_jax/tasks/story_prompts_types.jsonl

writes the other, in which no prompt to train on has a hero, a name or an event of those to evaluate on: these have the last
HELD_HEROES and HELD_EVENTS alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

TRAIN, TEST, SEED = 320, 64, 0
HELD_HEROES, HELD_EVENTS = 2, 3
HEROES = (
    ("girl", "she", "her", ("Lily", "Mia", "Sue", "Amy", "Anna", "Sara")),
    ("boy", "he", "his", ("Tim", "Ben", "Tom", "Sam", "Max", "Jack")),
    ("bunny", "he", "his", ("Benny", "Bobo", "Hoppy")),
    ("dog", "he", "his", ("Max", "Spot", "Buddy")),
    ("cat", "she", "her", ("Kitty", "Mimi", "Luna")),
    ("bird", "she", "her", ("Bella", "Mia", "Polly")),
)
NATURES = ("little", "big", "small", "brave", "curious", "shy")
EVENTS = (
    "One day, {they} went to the park with {their} mom.",
    "One day, {they} met a big frog.",
    "One day, {they} saw a red ball in a tree.",
    "One day, {they} found a box in the garden.",
    "One day, {they} lost {their} toy.",
    "One day, {they} wanted to bake a cake.",
    "One day, {they} went for a walk with {their} friend.",
    "One day, {they} heard a loud noise.",
    "One day, {they} wanted to play a new game.",
    "One day, {their} mom came home with a surprise.",
)


def beginnings(heroes: Sequence[tuple] = HEROES, events: Sequence[str] = EVENTS) -> list[str]:
    """All that the templates make of these heroes and events, in their order."""
    return [
        f"Once upon a time, there was a {nature} {kind} named {name}. {event.format(they=subject, their=their)}"
        for kind, subject, their, names in heroes
        for name in names
        for nature in NATURES
        for event in events
    ]


def prompts() -> list[dict[str, str]]:
    """The file's rows."""
    drawn = random.Random(SEED).sample(beginnings(), TRAIN + TEST)
    return rows(drawn[:TRAIN], drawn[TRAIN:])


def prompts_by_types() -> list[dict[str, str]]:
    """The other file's rows."""
    held, draw = HEROES[-HELD_HEROES:], random.Random(SEED)
    names = {name for *_, own in held for name in own}
    known = [(*hero, tuple(n for n in own if n not in names)) for *hero, own in HEROES[:-HELD_HEROES]]
    return rows(
        draw.sample(beginnings(known, EVENTS[:-HELD_EVENTS]), TRAIN),
        draw.sample(beginnings(held, EVENTS[-HELD_EVENTS:]), TEST),
    )


def rows(train: Sequence[str], test: Sequence[str]) -> list[dict[str, str]]:
    """Beginnings as a file's rows."""
    return [{"prompt": t, "split": split} for split, texts in (("train", train), ("test", test)) for t in texts]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.tasks.story_prompts", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="file to write")
    parser.add_argument("--types", action="store_true", help="evaluate on types of beginnings that are not trained on")
    args = parser.parse_args(argv)
    written = prompts_by_types() if args.types else prompts()
    args.out.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")


if __name__ == "__main__":
    main()
