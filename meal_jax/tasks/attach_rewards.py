"""Puts the rewards of `config.reward.sources` in place of, or beside, a benchmark's own: loads models, traces functions.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from meal_jax.classifiers import classifier
from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.data.prompts import Prompts
from meal_jax.hf import pretrained
from meal_jax.meal.step import Batch, Frozen
from meal_jax.rewards import charges, formats, judge, python, stop, text
from meal_jax.rewards.sources import CALLS, FIELD, TRAINED, Source, parse, reads_text
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import sharding
from meal_jax.tasks.task import Task


def attach(task: Task, config, load: Callable | None = None) -> Task:
    """The task with the rewards of `config.reward.sources` in place of, or beside, its own.

    Args:
      task: as its builder made it: its `reward` gives the columns of `own(config)`.
      config: the run's.
      load: (source, config, task) → an entry of `Task.text_rewards`, where nothing shall be loaded.

    Returns:
      The task; `reward` gives the columns of the device, `text_rewards` the others.

    Raises:
      FileNotFoundError: a model is not there.
      ValueError: a model, a judge or a function does not do; or a reward reads text and the benchmark has none.
    """
    if not config.reward.sources:
        return cut_answers(_charged(task, config))
    sources = [parse(source) for source in config.reward.sources]
    length = task.train.tokens.shape[1]
    columns = tuple(
        token_function(source, config, objective, length) if source.kind == "jax" else None
        for source, objective in zip(sources, config.objectives, strict=True)
        if source.kind in ("heads", "jax")
    )
    device = _device_reward(task.reward, columns)
    if any(map(reads_text, sources)):
        need_text(task)
        task = task._replace(train=_one_text_an_id(task.train))
    if any(source.kind != "heads" for source in sources):
        task = task._replace(truth=None)  # it was of the benchmark's own rewards
        if not config.eval.reference:
            task = task._replace(reference=_reference(task, sources))
    attached = task._replace(
        reward=device,
        reward_reads_base=task.reward_reads_base and None in columns,
        text_rewards=tuple(
            load(source, config, task) if load else _text_reward(source, config, task, objective)
            for source, objective in zip(sources, config.objectives, strict=True)
        ),
        token_functions=tuple(f"jax:{source.value}" if source.kind == "jax" else "" for source in sources),
        judged_by_base=not config.reward.judge and any(source.kind == "judge" for source in sources),
    )
    attached = _charged(attached, config)
    return attached if all(map(reads_text, sources)) and not attached.charged else cut_answers(attached)


def _charged(task: Task, config) -> Task:
    """The task with what `config.reward` charges for copies and for answers that do not end taken from its rewards."""
    r = config.reward
    if not (r.copy_penalty or r.missing_eos_penalty):
        return task
    charge = functools.partial(
        charges.charge,
        end=task.end,
        copy_penalty=r.copy_penalty,
        copy_free=r.copy_free,
        missing_eos_penalty=r.missing_eos_penalty,
    )
    for_host = any(task.text_rewards)
    reward = charges.charging(task.reward, charge, for_host=for_host)
    return task._replace(reward=reward, charged=for_host, truth=None)  # truth is of the rewards as they were


def cut_answers(task: Task) -> Task:
    """The task with a reward that reads answers cut at `Task.stop`, as rewards of text do (see `rewards.stop`).

    Raises:
      ValueError: a stop text cannot be found among the tokenizer's tokens.
    """
    if not task.stop or task.chat is None:
        return task
    automata = stop.tables(task.chat.tokenizer, task.transformer.vocab_size, task.stop)
    return task._replace(
        reward=stop.cutting(task.reward),
        reward_params={"own": task.reward_params, "stop": jax.tree.map(jnp.asarray, automata)},
    )


def _reference(task: Task, sources: Sequence[Source]) -> np.ndarray:
    """The hypervolume's reference [K], NaN where the first evaluation fixes it: of rewards whose scale nobody knows yet."""
    unknown = [source.kind in CALLS or source.value == TRAINED for source in sources]
    return np.where(unknown, np.nan, np.asarray(task.reference, np.float64))


def warn_of_reference(task: Task, config) -> None:
    """Says where hypervolumes are measured from, if that is not a point that was chosen for these rewards."""
    if config.eval.reference or all(parse(source).kind == "heads" for source in config.reward.sources):
        return
    unknown = np.isnan(task.reference)
    if unknown.any():
        named = ", ".join(name for name, new in zip(config.objectives, unknown, strict=True) if new)
        sentence = f"of {named} is measured from a point that the first evaluation fixes and records (field reference)"
    else:
        sentence = (
            f"of {', '.join(config.objectives)} is measured from {task.reference.tolist()}, which the benchmark chose for its "
            "own rewards"
        )
    logging.warning("the hypervolume %s; config.eval.reference sets another point", sentence)


def need_text(task: Task) -> None:
    """Raises ValueError unless every prompt has a text."""
    for split, prompts in (("training", task.train), ("test", task.test)):
        if len(prompts.text) != len(prompts.id):
            raise ValueError(
                f"{FIELD} has a reward that reads text, but {len(prompts.id) - len(prompts.text)} of the "
                f"{len(prompts.id)} {split} prompts of the benchmark {task.name!r} have none. Its builder must fill "
                "Prompts.text; rewards of tokens (heads, jax:…) need none."
            )


def scorer(task: Task, mesh: jax.sharding.Mesh, frozen: Frozen) -> text.TextScorer | None:
    """The host's part of scoring, its models placed on the mesh; None where the device computes every reward."""
    if not any(task.text_rewards):
        return None
    rewards = tuple(make and make(mesh, frozen) for make in task.text_rewards)
    texts = dict(zip(task.train.id.tolist(), task.train.text, strict=True))

    def show(tokens):
        return templates.cut(task.show(tokens), task.stop)

    return text.TextScorer(task.objectives, rewards, texts, show, task.token_functions, task.charged)


def _one_text_an_id(prompts: Prompts) -> Prompts:
    """Without the rows whose id, a short hash, is that of another text before them."""
    first = {}
    keep = [
        first.setdefault(name, prompt) == prompt for name, prompt in zip(prompts.id.tolist(), prompts.text, strict=True)
    ]
    if not all(keep):
        logging.warning("%d training prompts are left out: their ids are those of others", keep.count(False))
    return prompts.rows(np.array(keep))


def _device_reward(own_reward: Callable | None, columns: tuple[Callable | None, ...]) -> Callable:
    """`Setup.reward` of the device's columns: the next of the benchmark's own for None, else a function of tokens."""

    def reward(params, batch: Batch, responses: Responses, hidden) -> jax.Array:
        own_columns = iter(())
        if None in columns:
            own_columns = iter(jnp.moveaxis(own_reward(params, batch, responses, hidden), -1, 0))
        rewards = [next(own_columns) if column is None else column(batch, responses) for column in columns]
        return jnp.stack(rewards, axis=-1) if rewards else jnp.zeros((*responses.tokens.shape[:2], 0))

    return reward


def token_function(source: Source, config, objective: str, length: int) -> Callable:
    """The column of a user's function of tokens: (Batch, Responses) → [B, N].

    It is traced on shapes like the run's, prompts of `length` tokens, so that a wrong one is refused before a run begins.

    Raises:
      ValueError, FileNotFoundError: as `python.load_reward` and `python.token_column`.
    """
    function = python.load_reward("jax", source.value, f"{FIELD} jax:{source.value}")

    def column(batch: Batch, responses: Responses) -> jax.Array:
        return python.token_column(function, objective, batch, responses, f"jax:{source.value}")

    of = jax.ShapeDtypeStruct
    prompts, answers = (2, length), (2, 3, config.sampling.max_new)
    batch = Batch(of(prompts, jnp.int32), of(prompts, bool), of(prompts[:1], jnp.int32))
    responses = Responses(of(answers, jnp.int32), of(answers, bool), of(answers, jnp.float32), of(answers[:2], bool))
    jax.eval_shape(column, batch, responses)
    return column


def _text_reward(source: Source, config, task: Task, objective: str) -> Callable | None:
    """Loads what a reward of texts needs; returns (mesh, frozen) → reward, None for a reward of tokens."""
    return MAKERS[source.kind](source, config, task, objective) if reads_text(source) else None


def text_function(source: Source, config, objective: str, prompts: Sequence[str]) -> python.TextFunction:
    """A user's function of texts, tried on the first two prompts, so that a wrong one is refused before a run begins.

    Of rows of the user's own it reads what the row says, else the prompt as `Prompts.text` has it.

    Raises:
      ValueError, FileNotFoundError, FloatingPointError: as `python.load_reward` and `text.check`.
    """
    named = f"python:{source.value}"
    loaded = python.load_reward("python", source.value, f"{FIELD} {named}")
    show = chats.spoken if config.data.format == "own" else None
    function = python.TextFunction(loaded, named, objective, show)
    rows = list(prompts[:2])
    responses = [chats.spoken(row) for row in rows]
    text.check(objective, function(rows, responses), responses, named)
    return function


def _python(source: Source, config, task: Task, objective: str) -> Callable:
    function = text_function(source, config, objective, task.train.text)
    return lambda mesh, frozen: function


def _model(source: Source, config, task: Task, objective: str) -> Callable:
    preset = formats.trained(source.directory) if source.value == TRAINED else formats.PRESETS[source.value]
    place = source.directory or preset.source
    tokenizer = pretrained.load_tokenizer(place)
    # Weights are rounded to the compute type before they are used; stored in it they take half and score the same.
    model = classifier.load(place, dtype=config.reward.dtype, param_dtype=config.reward.dtype)
    where = f"{FIELD} {source.value}@{place}"
    names = formats.label_names(pretrained.resolve(place))
    formats.need_fit(tokenizer, preset, model.labels, model.config.vocab_size, source.value, where, names)
    rows = config.reward.batch_size
    return lambda mesh, frozen: text.classifier_reward(
        model, tokenizer, preset.layout, preset.label, mesh, batch_size=rows
    )


def _judge(source: Source, config, task: Task, objective: str) -> Callable:
    rows, place = config.reward.batch_size, config.reward.judge
    if place:
        asked = judge.make_question(pretrained.load_tokenizer(place), source.value)
        transformer = pretrained.load_config(place, dtype=config.reward.dtype, param_dtype=config.reward.dtype)
        formats.need_rows(asked.tokenizer, transformer.vocab_size, f"config.reward.judge={place}")
        weights = {"transformer": pretrained.load_params(place, transformer)}
        return lambda mesh, frozen: judge.make_reward(
            asked,
            transformer,
            jax.tree.map(sharding.put, weights, sharding.shardings(weights, mesh)),
            mesh,
            batch_size=rows,
        )
    if task.weights is None:
        raise ValueError(
            f"{FIELD} judge:{source.value} needs a language model, and this policy starts from random weights: name a "
            "Hugging Face directory or a hub id in config.reward.judge."
        )
    asked = judge.make_question(pretrained.load_tokenizer(config.policy.source), source.value)
    transformer = dataclasses.replace(task.transformer, lora=None)
    formats.need_rows(asked.tokenizer, transformer.vocab_size, f"{FIELD} judge:{source.value}")
    return lambda mesh, frozen: judge.make_reward(asked, transformer, frozen.reference, mesh, batch_size=rows)


# What makes a reward of texts of each kind: (Source, config, Task, objective) → (mesh, Frozen) → a reward, see `rewards.text`.
MAKERS: dict[str, Callable] = {"model": _model, "python": _python, "judge": _judge}
