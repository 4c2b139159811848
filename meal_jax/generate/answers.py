"""Text in, text out: what a trained policy answers to a prompt, under one preference or many.

    python -m meal_jax.generate --checkpoint=WORKDIR --preference=0.3,0.7 --prompt="How do I keep bread fresh?"
    python -m meal_jax.generate --checkpoint=WORKDIR --grid --prompt_row=0
    python -m meal_jax.generate --checkpoint=WORKDIR --grid --prompts=prompts.jsonl --out=answers.jsonl

With one preference the answer alone is printed. With several, or --grid, a table: the preference, what the method proposed for
it to the policy, the answer, and its rewards, `python:` ones and reward models included. A benchmark that is not of text takes
a prompt as its tokens are shown, e.g. "< 4 8 13".

With --prompts a file of JSON lines is answered, {"prompt": …} or {"messages": […]} as in `data.own`, to a file with a line
per prompt and preference:

    {"row": 0, "prompt": "Which tea?", "preference": {"harmless": 0.3, "helpful": 0.7}, "proposed": {"harmless": 0.28,
    "helpful": 0.72}, "answer": "Sencha.", "ended": true, "rewards": {"harmless": 0.41, "helpful": 1.3}}

`row` counts the file's prompts from 0; `ended` is false for an answer that max_new cut. An answer is the text that the rewards
are of, up to the first text of `config.data.stop`, here and in the table. Where the policy wrote on behind it, `whole` has all
of its text.

Letters: E prompts, M preferences, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meal_jax import console, evaluate
from meal_jax.data import chat as chats
from meal_jax.data import own
from meal_jax.data.prompts import Prompts
from meal_jax.limits import SEED
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime.metrics import progress
from meal_jax.saved_run import Run, open_run, read_config, read_preference
from meal_jax.tasks import attach_rewards
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
      rewards: also compute the rewards, which takes another pass of the model, or the host for rewards that read text.

    Returns:
      evaluate.Answers, NumPy: [E, M, ...]; without rewards, scores [E, M, 0].
    """
    return reusable(run, sampling=sampling, max_new=max_new, rewards=rewards)(prompts, preferences, seed)


def reusable(
    run: Run, *, sampling: Sampling, max_new: int, rewards: bool = True
) -> Callable[[Prompts, np.ndarray, int], evaluate.Answers]:
    """`answers` as a function of (prompts, preferences [M, K], seed), for several calls.

    Its reward models are made once, and its program once for each shape of prompts and preferences.
    """
    setup, scorer = dataclasses.replace(run.setup, max_new=max_new), None
    if rewards:
        scorer = attach_rewards.scorer(run.task, run.mesh, run.frozen)
    else:
        meal = dataclasses.replace(setup.meal, beta=0.0)
        setup = dataclasses.replace(setup, reward=_no_rewards, reward_reads_base=False, meal=meal)
    answer = jax.jit(evaluate.answer_fn(setup, run.method, sampling))

    def call(prompts: Prompts, preferences: np.ndarray, seed: int) -> evaluate.Answers:
        return evaluate.evaluate(
            answer, run.state, run.frozen, prompts, preferences, batch_size=min(len(prompts.id), batch_size(run)),
            seed=seed, place=lambda array: array, scorer=scorer,
        )  # fmt: skip

    return call


def batch_size(run: Run) -> int:
    """Prompts to answer at a time: as many as the run's evaluation, or as `config.micro` fits into memory."""
    config = run.config
    return min(size for size in (config.eval.batch_size, config.micro.rollout, config.micro.score) if size)


def _no_rewards(params, batch, responses, hidden) -> jax.Array:
    return jax.numpy.zeros((*responses.ended.shape, 0))


def read_prompt(task: Task, text: str) -> Prompts:
    """One prompt from what a person typed; see `read_prompts`."""
    return read_prompts(task, [(("user", text),)])


def read_prompts(task: Task, conversations: Sequence[chats.Turns]) -> Prompts:
    """Prompts from what a person wrote, each of as many tokens as the run's prompts may have.

    Raises:
      ValueError: one is too long, or holds what is not a token of a benchmark that is not of text.
    """
    room = task.test.tokens.shape[1]
    conversations, texts = zip(*map(task.ask, conversations), strict=True)
    if task.chat is None:
        return _read_tokens(task, texts, room)
    prompts = chats.encode_conversations(task.chat, conversations, room)
    chats.need_known(
        task.chat, task.transformer.vocab_size, list(map(_real, prompts.tokens, prompts.mask)), "The prompt"
    )
    if task.test.text and not chats.is_transcript(task.test.text[0]):
        prompts = prompts._replace(text=tuple(texts))  # as this benchmark's rewards read them
    return prompts


def _real(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return tokens[mask]


def _read_tokens(task: Task, texts: Sequence[str], room: int) -> Prompts:
    ids = {task.show(np.array([i])): i for i in range(task.transformer.vocab_size)}
    rows = [text.split() for text in texts]
    for words in rows:
        unknown = [word for word in words if word not in ids]
        if unknown:
            raise ValueError(f"The prompt has {', '.join(unknown)}: tokens here are written {_few(list(ids))}.")
        if not 0 < len(words) <= room:
            raise ValueError(f"The prompt has {len(words)} tokens, there is room for 1 to {room}.")
    return chats.pad_left(
        [[ids[word] for word in words] for words in rows], room, task.pad, text=[" ".join(words) for words in rows]
    )


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
    """The answers to one prompt under M preferences, a row each; with their rewards, if they were computed."""
    rewards = answered.scores.shape[-1] == len(task.objectives)
    out = Table(show_lines=True)
    out.add_column(f"preference\n{escape(' '.join(task.objectives))}", no_wrap=True)
    out.add_column("proposed", no_wrap=True)
    out.add_column("answer", overflow="fold", ratio=1)
    for name in task.objectives if rewards else ():
        out.add_column(escape(name), justify="right", no_wrap=True)
    for m, w in enumerate(preferences):
        text = evaluate.readable_answer(task, answered.tokens[0, m], answered.mask[0, m], answered.ended[0, m])
        scores = [f"{score:.2f}" for score in answered.scores[0, m]] if rewards else []
        out.add_row(_numbers(w), _numbers(answered.proposals[0, m]), escape(text), *scores)
    return out


def _numbers(weights: Sequence[float]) -> str:
    return " ".join(f"{v:.2f}" for v in weights)


def _few(words: Sequence[str], limit: int = 12) -> str:
    return " ".join(words[:limit]) + (f" … {words[-1]}" if len(words) > limit else "")


def ask(args: argparse.Namespace) -> None:
    """Answers what the command line asks for, and prints it, or writes it to --out."""
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
    if not SEED.holds(args.seed):
        raise ValueError(f"--seed={args.seed} must lie between {SEED.lowest} and {SEED.highest}.")
    conversations = _conversations(args)
    run = open_run(args.checkpoint, config, args.devices)
    alone = len(preferences) == 1 and not args.grid and not args.prompts
    answer = reusable(run, sampling=sampling, max_new=max_new, rewards=not alone)
    answer = functools.partial(answer, preferences=np.array(preferences), seed=args.seed)
    if args.prompts:
        count = write(Path(args.out), run, read_prompts(run.task, conversations), np.array(preferences), answer)
        summary = f"{count} answers (prompts: {len(conversations)}, preferences: {len(preferences)})"
        console.say(f"{args.out}: {summary}")
        return
    prompts = read_prompt(run.task, args.prompt) if args.prompt is not None else pick_prompt(run.task, args.prompt_row)
    answered = answer(prompts)
    if alone:
        print(evaluate.readable_answer(run.task, answered.tokens[0, 0], answered.mask[0, 0], answered.ended[0, 0]))
    else:
        terminal = Console()
        terminal.print(escape(evaluate.readable_prompt(run.task, prompts, 0)), style="bold")
        terminal.print(table(run.task, np.array(preferences), answered))


def _conversations(args: argparse.Namespace) -> list[chats.Turns]:
    """The prompts of --prompts; none without.

    Raises:
      ValueError: --prompts and --out do not come together; --out is there already, or its directory is not.
    """
    if bool(args.prompts) != bool(args.out):
        raise ValueError("--prompts=FILE.jsonl and --out=FILE.jsonl belong together.")
    if not args.prompts:
        return []
    out = Path(args.out).expanduser()
    if out.exists():
        raise ValueError(f"--out={args.out} is there already: remove it, or name another file.")
    if not out.parent.is_dir():
        raise ValueError(f"--out={args.out}: there is no directory {out.parent}. Make it, or name another file.")
    return own.read_rows(args.prompts).prompts


def write(
    path: Path, run: Run, prompts: Prompts, preferences: np.ndarray, answer: Callable[[Prompts], evaluate.Answers]
) -> int:
    """Answers E prompts under M preferences [M, K] and writes a JSON line for each, a batch of prompts at a time.

    Returns:
      The number of lines, E × M.
    """
    names, count, size = run.task.objectives, 0, batch_size(run)
    with (
        path.expanduser().open("x") as file,
        progress(len(prompts.id), 0, "answers", unit="prompt") as meter,
    ):
        for start in range(0, len(prompts.id), size):
            part = prompts.rows(np.arange(start, min(start + size, len(prompts.id))))
            answered = answer(part)
            for e, m in np.ndindex(answered.ended.shape):
                whole = evaluate.whole_answer(
                    run.task, answered.tokens[e, m], answered.mask[e, m], answered.ended[e, m]
                )
                text = evaluate.cut_answer(run.task, whole)
                line = {
                    "row": start + e,
                    "prompt": evaluate.readable_prompt(run.task, part, e),
                    "preference": _named(names, preferences[m]),
                    "proposed": _named(names, answered.proposals[e, m]),
                    "answer": text,
                    **({} if text == whole else {"whole": whole}),
                    "ended": bool(answered.ended[e, m]) or text != whole,
                    "rewards": _named(names, answered.scores[e, m]),
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            meter.update(start + len(part.id))
    return count


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}
