"""Text in, text out: what a trained policy answers to a prompt, under one preference or many.

    python -m meal_jax.generate --checkpoint=WORKDIR --preference=0.3,0.7 --prompt="How do I keep bread fresh?"
    python -m meal_jax.generate --checkpoint=WORKDIR --grid --prompt_row=0

With one preference the answer alone is printed. With several, or --grid, a table: the preference, what the method proposed for
it to the policy, the answer, and its rewards where the device computes them (rewards that read text are left out: their models
would have to be loaded). A benchmark that is not of text takes a prompt as its tokens are shown, e.g. "< 4 8 13".

Letters: M preferences, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meal_jax import evaluate
from meal_jax.data import chat as chats
from meal_jax.data.prompts import Prompts
from meal_jax.rollout.sampling import Sampling
from meal_jax.saved_run import Run, open_run, read_config, read_preference
from meal_jax.tasks.task import Task


def answers(
    run: Run,
    prompts: Prompts,
    preferences: np.ndarray,
    *,
    sampling: Sampling,
    max_new: int,
    seed: int = 0,
    rewards: bool = True,
) -> evaluate.Answers:
    """What the policy answers to each prompt under each preference, as it is evaluated.

    Args:
      run: as from `open_run`.
      prompts: E of them.
      preferences: [M, K].
      sampling: how tokens are drawn.
      max_new: T.
      seed: of the draws.
      rewards: also compute those that the device computes, which takes another pass of the model.

    Returns:
      evaluate.Answers, NumPy: [E, M, ...]; without rewards, scores [E, M, 0].
    """
    setup = dataclasses.replace(run.setup, max_new=max_new)
    if not rewards:
        meal = dataclasses.replace(setup.meal, beta=0.0)
        setup = dataclasses.replace(setup, reward=_no_rewards, reward_reads_base=False, meal=meal)
    answer = jax.jit(evaluate.answer_fn(setup, run.method, sampling))
    return evaluate.evaluate(
        answer, run.state, run.frozen, prompts, preferences, batch_size=len(prompts.id), seed=seed, place=lambda a: a
    )


def _no_rewards(params, batch, responses, hidden) -> jax.Array:
    return jax.numpy.zeros((*responses.ended.shape, 0))


def read_prompt(task: Task, text: str) -> Prompts:
    """One prompt from what a person typed, of as many tokens as the run's prompts may have.

    Raises:
      ValueError: it is too long, or holds what is not a token of a benchmark that is not of text.
    """
    room = task.test.tokens.shape[1]
    if task.chat is not None:
        prompts = chats.encode_explicit(task.chat, [text], room)
        chats.need_known(task.chat, task.transformer.vocab_size, [prompts.tokens[0][prompts.mask[0]]], "The prompt")
        return prompts
    ids = {task.show(np.array([i])): i for i in range(task.transformer.vocab_size)}
    words = text.split()
    unknown = [word for word in words if word not in ids]
    if unknown:
        raise ValueError(f"The prompt has {', '.join(unknown)}: tokens here are written {_few(list(ids))}.")
    if not 0 < len(words) <= room:
        raise ValueError(f"The prompt has {len(words)} tokens, there is room for 1 to {room}.")
    return chats.pad_left([[ids[word] for word in words]], room, task.pad)


def pick_prompt(task: Task, row: int) -> Prompts:
    """Row `row` of the test prompts.

    Raises:
      ValueError: there is no such row.
    """
    rows = len(task.test.id)
    if not 0 <= row < rows:
        raise ValueError(f"--prompt_row={row}: the test prompts are rows 0 to {rows - 1}.")
    return task.test.rows(np.array([row]))


def table(task: Task, preferences: np.ndarray, answered: evaluate.Answers) -> Table:
    """The answers to one prompt under M preferences, a row each; with their rewards, where `found` has them."""
    rewards = answered.scores.shape[-1] == len(task.objectives)
    out = Table(show_lines=True)
    out.add_column(f"preference\n{' '.join(task.objectives)}", no_wrap=True)
    out.add_column("proposed", no_wrap=True)
    out.add_column("answer", overflow="fold", ratio=1)
    for name in task.objectives if rewards else ():
        out.add_column(name, justify="right", no_wrap=True)
    for m, w in enumerate(preferences):
        text = task.show(answered.tokens[0, m][answered.mask[0, m]])
        scores = [f"{score:.2f}" for score in answered.scores[0, m]] if rewards else []
        out.add_row(_numbers(w), _numbers(answered.proposals[0, m]), escape(text), *scores)
    return out


def _numbers(weights: Sequence[float]) -> str:
    return " ".join(f"{v:.2f}" for v in weights)


def _few(words: Sequence[str], limit: int = 12) -> str:
    return " ".join(words[:limit]) + (f" … {words[-1]}" if len(words) > limit else "")


def ask(args: argparse.Namespace) -> None:
    """Answers what the command line asks for, and prints it."""
    config = read_config(args.checkpoint, args.set)
    preferences = [read_preference(text, config.objectives) for text in args.preference]
    if args.grid:
        preferences += list(evaluate.grid(config))
    if not preferences:
        raise ValueError("Say under which preference: --preference=0.3,0.7 (one weight an objective), or --grid.")
    given = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    sampling = Sampling(**{name: config.eval[name] if value is None else value for name, value in given.items()})
    max_new = config.sampling.max_new if args.max_new is None else args.max_new
    if max_new < 1:
        raise ValueError(f"--max_new={max_new}: an answer needs room for 1 token or more.")
    run = open_run(args.checkpoint, config, args.devices)
    prompts = read_prompt(run.task, args.prompt) if args.prompt is not None else pick_prompt(run.task, args.prompt_row)
    alone = len(preferences) == 1 and not args.grid
    answered = answers(
        run,
        prompts,
        np.array(preferences),
        sampling=sampling,
        max_new=max_new,
        seed=args.seed,
        rewards=not alone and not run.task.text_rewards,
    )
    if alone:
        print(run.task.show(answered.tokens[0, 0][answered.mask[0, 0]]))
    else:
        console = Console()
        console.print(escape(run.task.show(prompts.tokens[0][prompts.mask[0]])), style="bold")
        console.print(table(run.task, np.array(preferences), answered))
