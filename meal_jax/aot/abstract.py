"""A run without weights, data or devices: shapes, types and shardings of everything its programs take.

The same functions build it that build a real run. Only the parts of a `Task` that come from files or the hub are made up
here, with the sizes of `hf.known`.

Letters: B prompts, N candidates, K objectives, S prompt tokens, T response tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from meal_jax import build, methods
from meal_jax.classifiers import classifier
from meal_jax.data.prompts import Prompts
from meal_jax.hf import families, known, pretrained
from meal_jax.meal.step import Batch, Setup
from meal_jax.models.policy import Conditioning, inserted
from meal_jax.models.transformer import TransformerConfig
from meal_jax.rewards import formats, linear_heads, sources
from meal_jax.runtime import sharding
from meal_jax.tasks import attach_rewards, language
from meal_jax.tasks.task import Task

PyTree = Any
# Tokens of the plain templates' generation prompts under Llama 2's tokenizer; the same number is assumed for chat templates.
TAIL = 6
NUMERAL = 10  # tokens that spell an objective's weight, conditioning "text"


def transformer(config) -> TransformerConfig:
    """The policy's architecture, from the table of known models or from a directory.

    Raises:
      ValueError, FileNotFoundError: it is neither.
    """
    p, source = config.policy, str(config.policy.source)
    settings = {"dtype": p.dtype, "param_dtype": p.param_dtype, "remat": p.remat}
    if source in known.DECODERS and not Path(source).expanduser().exists():
        parsed = families.parse(known.DECODERS[source], source)
        return dataclasses.replace(parsed, **settings)
    try:
        return pretrained.load_config(source, **settings)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\nSizes known without files: {', '.join(known.DECODERS)}.") from None


def make_task(config) -> Task:
    """The benchmark `config.task` with made-up prompts; a benchmark that needs no files is built as usual."""
    if not config.policy.source or language.counts(config):  # its files are the package's
        return build.build_task(config)
    objectives, model = tuple(config.objectives), transformer(config)
    own = tuple(objectives[k] for k in sources.own_objectives(config))
    heads = linear_heads.load(config.reward.heads).select(own) if own else None
    rows = max(config.batch_size, 2)
    blank = np.zeros((rows, config.data.prompt_length), np.int32)
    prompts = Prompts(blank, blank == 0, np.arange(rows, dtype=np.int32), ("",) * rows)
    numerals = tuple(((0,) * NUMERAL,) * 11 for _ in objectives)
    task = Task(
        objectives=objectives,
        transformer=model,
        conditioning=Conditioning(
            config.conditioning.kind,
            len(objectives),
            config.conditioning.slots,
            config.conditioning.hidden,
            numerals if inserted(config.conditioning.kind) == "text" else (),
            (0,) * TAIL,
            config.conditioning.prompt,
        ),
        weights=None,
        train=prompts,
        test=prompts,
        pad=0,
        end=1,
        forbidden=np.arange(model.vocab_size) == 0,
        reward=heads and heads.reward,
        reward_params=heads.params if heads else {},
        reward_reads_base=heads is not None,
        reference=np.zeros(len(objectives)),
        truth=None,
        show=str,
        name=config.task,
    )
    return build.for_method(attach_rewards.attach(task, config, load=_unloaded), config)


def _unloaded(source: sources.Source, config, task: Task) -> sources.Source | None:
    return source if sources.reads_text(source) else None


class Plan(NamedTuple):
    """Everything that a run compiles and holds, as shapes with shardings.

    Attributes:
      setup: of the run.
      mesh: of its devices.
      task: its benchmark, with made-up prompts.
      state, frozen, batch: shapes with shardings.
      classifiers: objective → reward model, its parameters as shapes with shardings.
    """

    setup: Setup
    mesh: jax.sharding.Mesh
    task: Task
    state: PyTree
    frozen: PyTree
    batch: Batch
    classifiers: dict[str, classifier.Classifier]

    @property
    def rewards(self) -> dict[str, PyTree]:
        """Parameters of the reward models."""
        return {name: model.params for name, model in self.classifiers.items()}


def plan(config, devices) -> Plan:
    """Builds a run on devices that need not exist.

    Raises:
      ValueError: as a run's own checks, before anything is compiled.
    """
    method = methods.get(config.method)
    mesh = build.mesh_of(config, devices, evaluates=False)
    task = make_task(config)
    setup = build.build_setup(config, task)
    with jax.set_mesh(mesh):
        state, frozen = build.abstract_state(setup, task, method.init, mesh)
    struct = jax.ShapeDtypeStruct
    shape = (config.batch_size, task.train.tokens.shape[1])
    batch = Batch(struct(shape, jnp.int32), struct(shape, jnp.bool_), struct(shape[:1], jnp.int32))
    rows = jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)
    classifiers = {}
    for name, source in zip(config.objectives, task.text_rewards, strict=False):
        if source is not None and source.kind == "model":
            model = _classifier(source, config)
            # Copied to every device, as `rewards.text.classifier_reward` does.
            classifiers[name] = model._replace(params=sharding.abstract(model.params, sharding.replicated(mesh)))
    return Plan(
        setup, mesh, task, state, frozen, sharding.abstract(batch, rows), classifiers,
    )  # fmt: skip


def _classifier(source: sources.Source, config) -> classifier.Classifier:
    """A reward model whose parameters are shapes."""
    path = source.directory or formats.PRESETS[source.value].source
    types = {"dtype": config.reward.dtype, "param_dtype": config.reward.dtype}
    if path in known.CLASSIFIERS:
        parsed = classifier.parse(known.CLASSIFIERS[path], Path(path), **types)
    else:
        parsed = classifier.load_config(path, **types)
    return classifier.make_classifier(parsed, traverse_util.unflatten_dict(classifier.param_shapes(parsed), sep="/"))
