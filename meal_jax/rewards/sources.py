"""Where each objective's reward comes from: `config.reward.sources`, one string an objective.

    heads                        the benchmark's own reward of that objective, computed on the device
    harmless                     a published reward model, see `rewards.formats.PRESETS`, from the hub
    harmless@DIRECTORY           a model of that kind in a Hugging Face directory
    model@DIRECTORY              a model that `rewards.finetune` trained; its config.json says how it is read
    python:FILE.py:FUNCTION      a user's function of texts (or python:package.module:function)
    jax:FILE.py:FUNCTION         a user's function of tokens, run inside the jitted step
    judge:QUESTION               log-odds that a language model answers the question about a response with yes

No strings at all is `heads` for every objective. Kinds may be mixed.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from meal_jax.meal.step import Batch, Frozen
from meal_jax.models import classifier, hf
from meal_jax.rewards import formats, judge, python, text
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import sharding
from meal_jax.tasks.task import Prompts, Task

FIELD = "config.reward.sources"
CALLS = ("python", "jax", "judge")
TRAINED = "model"  # in place of a preset's name
TEXT = ("model", "python", "judge")  # kinds that the host computes from texts


class Source(NamedTuple):
    """A string of `config.reward.sources`, taken apart: kind ("heads", "model", "python", "jax" or "judge") and the rest.

    Attributes:
      kind: as above.
      value: the function's place, the question, the preset's name, or TRAINED.
      directory: of the model; "" for the preset's hub id.
    """

    kind: str
    value: str = ""
    directory: str = ""


def parse(source: str) -> Source:
    """Takes one string apart.

    Raises:
      ValueError: it has none of the forms.
    """
    kind, colon, value = source.partition(":")
    if colon and kind in CALLS:
        if not value.strip():
            raise ValueError(f"{FIELD}: {source!r} names no {'question' if kind == 'judge' else 'function'}.")
        return Source(kind, value.strip())
    if source == "heads":
        return Source("heads")
    name, at, directory = source.partition("@")
    if (name not in formats.PRESETS and not (name == TRAINED and at)) or (at and not directory):
        near = difflib.get_close_matches(name, [*formats.PRESETS, "heads", *CALLS], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{FIELD}: {source!r} is none of: heads; {', '.join(formats.PRESETS)}, each alone or with "
            f"@DIRECTORY; {TRAINED}@DIRECTORY; python:FILE.py:FUNCTION; jax:FILE.py:FUNCTION; judge:QUESTION.{hint}"
        )
    return Source("model", name, directory)


def check(sources: Sequence[str], objectives: Sequence[str]) -> None:
    """What can be said of sources without a model: their number, their form, that directories and functions are there.

    A user's file is executed for that.

    Raises:
      ValueError, FileNotFoundError: names the source.
    """
    if sources and len(sources) != len(objectives):
        raise ValueError(
            f"{FIELD} names {len(sources)} rewards {tuple(sources)} for the {len(objectives)} of "
            f"config.objectives {tuple(objectives)}: give one each, in that order ('heads' for the benchmark's own), or "
            "none for the benchmark's own."
        )
    for source in map(parse, sources):
        if source.kind in ("python", "jax"):
            python.load(source.value, f"{FIELD} {source.kind}:{source.value}")
        if source.directory and not Path(source.directory).expanduser().is_dir():
            raise FileNotFoundError(
                f"{FIELD} {source.value}@{source.directory}: there is no such directory; it must hold a "
                "reward model in Hugging Face's form."
            )
        if source.value == TRAINED and source.kind == "model":
            formats.trained(source.directory)


def own(config) -> tuple[int, ...]:
    """Numbers of the objectives whose rewards are the benchmark's own: those that `tasks.*.build` must provide."""
    sources = config.reward.sources or ("heads",) * len(config.objectives)
    return tuple(k for k, source in enumerate(sources) if parse(source).kind == "heads")


def describe(config) -> tuple[str, ...]:
    """What a figure's axes say of each objective: its name, and the model, function or question that its rewards are of."""
    sources = map(parse, config.reward.sources or ("heads",) * len(config.objectives))
    out = []
    for objective, source in zip(config.objectives, sources, strict=True):
        if source.kind == "model":
            of = Path(source.directory).name or formats.PRESETS[source.value].source
        else:
            of = {"heads": "", "judge": f"judge: {source.value}"}.get(source.kind, source.value.rpartition(":")[2])
        out.append(f"{objective} reward" + (f" ({of})" if of else ""))
    return tuple(out)


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
        return task
    sources = [parse(source) for source in config.reward.sources]
    columns = tuple(
        _token_function(source, objective) if source.kind == "jax" else None
        for source, objective in zip(sources, config.objectives, strict=True)
        if source.kind in ("heads", "jax")
    )
    device = _device_reward(task.reward, columns)
    _try_functions(columns, task, config)
    if any(source.kind in TEXT for source in sources):
        need_text(task)
        task = task._replace(train=_one_text_an_id(task.train))
    if any(source.kind != "heads" for source in sources):
        task = task._replace(truth=None)  # it was of the benchmark's own rewards
        if not config.eval.reference:
            logging.warning(
                "the hypervolume is measured from %s, which the benchmark chose for its own rewards; "
                "config.eval.reference sets another point",
                task.reference.tolist(),
            )
    return task._replace(
        reward=device,
        reward_reads_base=task.reward_reads_base and None in columns,
        text_rewards=tuple((load or _text_reward)(source, config, task) for source in sources),
        judged_by_base=not config.reward.judge and any(source.kind == "judge" for source in sources),
    )


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
    return text.TextScorer(task.objectives, rewards, texts, task.show)


def _one_text_an_id(prompts: Prompts) -> Prompts:
    """Without the rows whose id, a short hash, is that of another text before them."""
    first = {}
    keep = [first.setdefault(name, said) == said for name, said in zip(prompts.id.tolist(), prompts.text, strict=True)]
    if not all(keep):
        logging.warning("%d training prompts are left out: their ids are those of others", keep.count(False))
    return prompts.rows(np.array(keep))


def _device_reward(own_reward: Callable | None, columns: tuple[Callable | None, ...]) -> Callable:
    """`Setup.reward` of the device's columns: the next of the benchmark's own for None, else a function of tokens."""

    def reward(params, batch: Batch, responses: Responses, hidden) -> jax.Array:
        theirs = iter(())
        if None in columns:
            theirs = iter(jnp.moveaxis(own_reward(params, batch, responses, hidden), -1, 0))
        found = [next(theirs) if column is None else column(batch, responses) for column in columns]
        return jnp.stack(found, axis=-1) if found else jnp.zeros((*responses.tokens.shape[:2], 0))

    return reward


def _token_function(source: Source, objective: str) -> Callable:
    return functools.partial(python.token_column, python.load(source.value, f"{FIELD} jax:{source.value}"), objective)


def _try_functions(columns: Sequence[Callable | None], task: Task, config) -> None:
    """Traces users' functions of tokens on shapes like the run's, so that a wrong one is refused before it begins."""
    of = jax.ShapeDtypeStruct
    prompts, answers = (2, task.train.tokens.shape[1]), (2, 3, config.sampling.max_new)
    batch = Batch(of(prompts, jnp.int32), of(prompts, bool), of(prompts[:1], jnp.int32))
    responses = Responses(of(answers, jnp.int32), of(answers, bool), of(answers, jnp.float32), of(answers[:2], bool))
    for column in columns:
        if column is not None:
            jax.eval_shape(column, batch, responses)


def _text_reward(source: Source, config, task: Task) -> Callable | None:
    """Loads what a reward of texts needs; returns (mesh, frozen) → reward, None for a reward of tokens."""
    if source.kind == "python":
        function = python.load(source.value, f"{FIELD} python:{source.value}")
        return lambda mesh, frozen: function
    return {"model": _model, "judge": _judge}.get(source.kind, lambda *_: None)(source, config, task)


def _model(source: Source, config, task: Task) -> Callable:
    preset = formats.trained(source.directory) if source.value == TRAINED else formats.PRESETS[source.value]
    at = source.directory or preset.source
    tokenizer = hf.load_tokenizer(at)
    # Weights are rounded to the compute type before they are used; stored in it they take half and score the same.
    model = classifier.load(at, dtype=config.reward.dtype, param_dtype=config.reward.dtype)
    if preset.label >= model.labels:
        raise ValueError(f"{FIELD}: {at} has {model.labels} labels, and {source.value!r} reads label {preset.label}.")
    formats.need_begin(tokenizer, preset.layout, f"{FIELD} {source.value}@{at}")
    rows = config.reward.batch_size
    return lambda mesh, frozen: text.of_classifier(model, tokenizer, preset.layout, preset.label, mesh, batch_size=rows)


def _judge(source: Source, config, task: Task) -> Callable:
    rows, at = config.reward.batch_size, config.reward.judge
    if at:
        asked = judge.ask(hf.load_tokenizer(at), source.value)
        transformer = hf.load_config(at, dtype=config.reward.dtype, param_dtype=config.reward.dtype)
        weights = {"transformer": hf.load_params(at, transformer)}
        return lambda mesh, frozen: judge.reward(
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
    asked = judge.ask(hf.load_tokenizer(config.policy.source), source.value)
    transformer = dataclasses.replace(task.transformer, lora=None)
    return lambda mesh, frozen: judge.reward(asked, transformer, frozen.reference, mesh, batch_size=rows)
