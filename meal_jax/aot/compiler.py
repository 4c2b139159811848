"""Compiles the programs of a plan, and reads the memory and collectives of each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meal_jax import methods, train
from meal_jax.aot import hlo
from meal_jax.aot.abstract import Plan
from meal_jax.rewards import formats, text
from meal_jax.runtime import sharding

PyTree = Any


class Program(NamedTuple):
    """A jitted function of a run, and its arguments.

    Attributes:
      name: of the phase, or "reward/" and the objective.
      function: jitted.
      args: shapes with shardings.
      resident: other arrays on the chips while it runs, shapes with shardings.
      calls: max number of calls per step.
    """

    name: str
    function: Any
    args: tuple
    resident: PyTree
    calls: int = 1


class Compiled(NamedTuple):
    """The memory of a program on each chip, in bytes.

    Attributes:
      name, calls: as in Program.
      arguments: of the program.
      output: results that do not overwrite arguments.
      temporary: workspace.
      code: the program itself.
      resident: other arrays.
      collectives: of one call.
      seconds: compile time.
      problem: why it did not compile, or "".
    """

    name: str
    calls: int
    arguments: float = 0.0
    output: float = 0.0
    temporary: float = 0.0
    code: float = 0.0
    resident: float = 0.0
    collectives: hlo.Collectives = hlo.Collectives({}, False)
    seconds: float = 0.0
    problem: str = ""

    @property
    def total(self) -> float:
        """Bytes on a chip while the program runs."""
        return self.arguments + self.output + self.temporary + self.code + self.resident


def programs(plan: Plan, config) -> Iterator[Program]:
    """The programs of a step, in the order they run: those that `train.compile_step` jits, and the reward models'.

    The arrays between two programs are assumed to be sharded like the batch, with rows split over the mesh.
    """
    method = methods.get(config.method)
    on_host = any(plan.task.text_rewards)
    places = (jax.tree.map(lambda leaf: leaf.sharding, plan.state), sharding.replicated(plan.mesh))
    # The scorer is not called while compiling; its presence splits the step into three programs.
    _, jitted = train.compile_step(plan.setup, method, object() if on_host else None, None, places)
    rewards, frozen, batch = plan.rewards, plan.frozen, plan.batch
    begins = (plan.state.replace(key=None), plan.state.key)
    if not on_host:
        yield Program("step", jitted[0], (*begins, frozen, batch), rewards)
        return
    rows = sharding.batch_sharding(plan.mesh)
    with jax.set_mesh(plan.mesh):
        rolled = sharding.abstract(jax.eval_shape(jitted[0], plan.state, frozen, batch), rows)
        scores = sharding.abstract(jax.eval_shape(jitted[1], frozen, batch, rolled.responses)[0], rows)
    yield Program("rollout", jitted[0], (plan.state, frozen, batch), rewards)
    yield Program("score", jitted[1], (frozen, batch, rolled.responses), (rewards, plan.state, rolled))
    count = math.prod(rolled.w.shape[:2])
    for name, params in rewards.items():
        function, args, calls = reward_call(plan, config, name, count)
        yield Program(f"reward/{name}", function, (params, *args), (plan.state, frozen, rolled, scores), calls)
    scores = scores._replace(rewards=jax.ShapeDtypeStruct(rolled.w.shape, jnp.float32, sharding=rows))
    yield Program("update", jitted[2], (*begins, frozen, batch, rolled, scores), rewards)


def reward_call(plan: Plan, config, name: str, count: int):
    """A reward model's program on its longest rows: jitted function, shapes of one batch, and calls for `count` rows."""
    model, rows = plan.classifiers[name], sharding.batch_sharding(plan.mesh)
    pieces = math.prod(plan.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    size = -(-config.reward.batch_size // pieces) * pieces
    length = min(reward_tokens(plan), model.max_length)
    args = tuple(
        jax.ShapeDtypeStruct((size, length), dtype, sharding=rows) for dtype in (jnp.int32, jnp.bool_, jnp.int32)
    )
    return jax.jit(model.apply), args, -(-count // size)


def reward_tokens(plan: Plan) -> int:
    """Tokens of a reward model's longest row: a prompt and a response, up to the bucket's length."""
    return text.bucket(plan.batch.tokens.shape[1] + plan.setup.max_new, formats.MAX_TOKENS)


def compile_program(program: Program, plan: Plan) -> Compiled:
    """Compiles one program. If it does not fit the chip, `problem` is the compiler's message."""
    began = time.perf_counter()
    result = Compiled(program.name, program.calls, resident=bytes_on_chip(program.resident))
    try:
        with jax.set_mesh(plan.mesh):
            compiled = program.function.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        arguments, message = bytes_on_chip(program.args), " ".join(str(error).split())
        return result._replace(arguments=arguments, seconds=time.perf_counter() - began, problem=message[:400])
    memory = compiled.memory_analysis()
    return result._replace(
        arguments=float(memory.argument_size_in_bytes),
        output=float(max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)),
        temporary=float(memory.temp_size_in_bytes),
        code=float(memory.generated_code_size_in_bytes),
        collectives=hlo.collectives(compiled.as_text(), plan.mesh.size),
        seconds=time.perf_counter() - began,
    )


def bytes_on_chip(tree: PyTree) -> float:
    """Bytes per chip of shapes with shardings."""

    def leaf_bytes(leaf) -> float:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.shape else ()
        width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf.dtype.itemsize
        return math.prod(shape) * width

    return float(sum(map(leaf_bytes, jax.tree.leaves(tree))))
