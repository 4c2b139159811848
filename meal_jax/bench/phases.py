"""A run to measure: the phases of training, compiled one by one and called on real batches.

Letters: B prompts, N candidates, S prompt tokens, T response tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from meal_jax import build, cost, methods, train
from meal_jax.bench import timing
from meal_jax.config import check
from meal_jax.data.pipeline import batch_at, prefetch
from meal_jax.hf import shapes
from meal_jax.meal.step import Setup
from meal_jax.runtime import sharding
from meal_jax.tasks.task import Task

PHASES = ("rollout", "score", "update", "step")
NEEDS = {"rollout": (), "score": ("rollout",), "update": ("rollout", "score"), "step": ()}


class Program(NamedTuple):
    """A compiled phase: the executable, seconds of tracing and of compiling, bytes of its workspace."""

    call: Callable
    trace_s: float
    compile_s: float
    temporary: int | None


class Opened(NamedTuple):
    """Shared by all measured methods: the checked configuration, its benchmark and the devices."""

    config: ml_collections.ConfigDict
    task: Task
    mesh: Any


def open_bench(config: ml_collections.ConfigDict, random: bool = False) -> Opened:
    """Loads the benchmark of a configuration.

    Args:
      config: as for training.
      random: draw weights at random, in the shapes of `config.policy.source`.

    Raises:
      ValueError: the configuration cannot run; its rewards read text; or `random` for a task other than "synthetic".
    """
    config = config.copy_and_resolve_references()
    if random and config.policy.source and not config.policy.source.startswith(shapes.RANDOM):
        config.policy.source = shapes.RANDOM + config.policy.source
    check(config)
    if random and config.task != "synthetic":
        raise ValueError(
            f"--random draws weights for the task 'synthetic' (configs/bench_smollm2.py), not for {config.task!r}, whose "
            "prompts need a tokenizer."
        )
    task = build.build_task(config)
    if any(task.text_rewards):
        raise ValueError(
            "Rewards that read text are scored on the host and are not measured here. Take config.reward.sources=() or "
            "configs/bench_smollm2.py."
        )
    mesh = build.mesh_of(config, evaluates=False)
    return Opened(config, task, mesh)


def full_length(setup: Setup, vocabulary: int) -> Setup:
    """The setup with the end token forbidden: every response has T tokens, so every repeat does the same work."""
    forbidden = jnp.zeros(vocabulary, bool) if setup.forbidden is None else setup.forbidden
    return dataclasses.replace(setup, forbidden=forbidden.at[setup.end].set(True))


class Side:
    """One method on the opened run: its state, its compiled phases, and the results that phases pass to each other.

    The phases are the functions that training jits (`train.compile_step`), compiled ahead so that
    tracing, compiling and running are timed apart. Use it under `jax.set_mesh(opened.mesh)`.
    """

    def __init__(self, opened: Opened, name: str, changes: dict[str, Any] | None = None, share: Side | None = None):
        """Builds it.

        Args:
          opened: the run.
          name: of the method.
          changes: changed fields of the configuration, such as {"meal.hypergradient": "none"}.
          share: another side, whose frozen weights are used if they have the same structure.
        """
        config = opened.config.copy_and_resolve_references()
        config.update_from_flattened_dict(changes or {})
        check(config)
        self.config = methods.configure(name, config)
        self.method = methods.get(name)
        self.opened = opened
        task = build.for_method(opened.task, self.config)
        self.setup = full_length(build.build_setup(self.config, task), task.transformer.vocab_size)
        _, self.state, frozen, self.placed, _ = train.begin(
            self.config, self.setup, task, self.method.init, opened.mesh, None
        )
        is_shared = share is not None and jax.tree.structure(frozen) == jax.tree.structure(share.frozen)
        self.frozen = share.frozen if is_shared else frozen
        self.batch = self.make_batch(0)
        self.rolled = self.scores = self.metrics = None
        self.programs: dict[str, Program] = {}

    def make_batch(self, step: int):
        """The batch of a step, on its devices."""
        c, rows = self.config, sharding.batch_sharding(self.opened.mesh)
        return batch_at(self.opened.task.train, step, c.batch_size, c.seed, c.data.buckets, rows)

    def compile(self, phases: Sequence[str]) -> None:
        """Compiles the phases and the phases that they depend on, and runs each once."""
        needed = [n for phase in phases for n in (*NEEDS[phase], phase)]
        for phase in [p for p in PHASES if p in needed and p not in self.programs]:
            self.compile_one(phase)

    def compile_one(self, phase: str) -> None:
        """Compiles a phase on the results of the phases before it, and runs it once."""
        out = (self.placed, sharding.replicated(self.opened.mesh))
        _, programs = train.compile_step(self.setup, self.method, None, jax.device_put, out, timed=phase != "step")
        jitted = programs[0 if phase == "step" else PHASES.index(phase)]
        began = time.perf_counter()
        lowered = jitted.lower(*self._arguments(phase))
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
        memory = compiled.memory_analysis()
        temporary = None if memory is None else int(memory.temp_size_in_bytes)
        self.programs[phase] = Program(compiled, traced - began, done - traced, temporary)
        self.run(phase)

    def run(self, phase: str) -> float:
        """Runs a compiled phase on the results of the phases before it; returns seconds until its results are ready."""
        seconds, out = timing.seconds(lambda: self.programs[phase].call(*self._arguments(phase)))
        if phase == "rollout":
            self.rolled = out
        elif phase == "score":
            self.scores, _ = out
        else:
            self._keep(*out)
        return seconds

    def _keep(self, state: Any, metrics: Any) -> None:
        self.state, self.metrics = state.replace(key=self.state.key), metrics

    def _arguments(self, phase: str) -> tuple:
        # Programs that return a state take its key separately, see `train`.
        state = (self.state.replace(key=None), self.state.key)
        return {
            "rollout": (self.state, self.frozen, self.batch),
            "score": (self.frozen, self.batch, self.rolled and self.rolled.responses),
            "update": (*state, self.frozen, self.batch, self.rolled, self.scores),
            "step": (*state, self.frozen, self.batch),
        }[phase]

    @property
    def tokens(self) -> int:
        """Response tokens of a step, B · N · T."""
        return self.samples * self.setup.max_new

    @property
    def samples(self) -> int:
        """Responses of a step, B · N."""
        return self.config.batch_size * self.method.cost(self.config).answers

    def sampled(self) -> int:
        """Response tokens that the last rollout sampled; must equal `tokens`."""
        return int(np.sum(jax.device_get(self.rolled.responses.mask)))

    def costs(self) -> dict[str, dict[str, cost.Cost]] | None:
        """Each phase's parts by the cost model; None for a method whose update is not Meal's."""
        if self.method.update is not methods.METHODS["meal"].update:
            return None
        parts = cost.step(cost.of_setup(self.setup, self.config.batch_size, self.batch.tokens.shape[1]))
        out = {p: {n: c for n, c in parts.items() if n.startswith(f"{p}/")} for p in PHASES[:3]}
        return out | {"step": parts}

    def loop(self, steps: int) -> dict[str, float]:
        """A short training loop: batches are made in advance in a thread, metrics are fetched one step late.

        Returns:
          seconds_per_step, and data_wait, the share of the time spent waiting for batches.
        """
        step, waits, pending = self.programs["step"].call, [], None
        began = time.perf_counter()
        with prefetch(self.make_batch, 0, steps) as next_batch:
            for _ in range(steps):
                self.batch, wait = next_batch()
                waits.append(wait)
                self._keep(*step(*self._arguments("step")))
                jax.device_get(pending)
                pending = self.metrics
        jax.device_get(pending)
        return {"seconds_per_step": (time.perf_counter() - began) / steps, "data_wait": float(np.mean(waits))}


def measure(runs: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[Any]]:
    """Calls all in turn, `repeats` times, every other round in reverse order, so that drifts of the machine affect all."""
    out = {name: [] for name in runs}
    for repeat in range(repeats):
        for name in list(runs)[:: 1 if repeat % 2 == 0 else -1]:
            out[name].append(runs[name]())
    return out


def round_of(side: Side, phases: Sequence[str]) -> Callable[[], dict[str, float]]:
    """A function that runs a side's phases once, in order, and returns the seconds of each."""
    return lambda: {phase: side.run(phase) for phase in phases}
