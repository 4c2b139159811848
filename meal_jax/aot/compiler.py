"""Compiles the programs of a plan, and reads off what each takes on a chip."""

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
    """A jitted function of a run, and how it is called.

    Attributes:
      name: of the phase, or "reward/" and the objective.
      function: jitted.
      args: shapes with shardings.
      resident: what else lies on the chips while it runs, shapes with shardings.
      calls: how often a step calls it, at most.
    """

    name: str
    function: Any
    args: tuple
    resident: PyTree
    calls: int = 1


class Compiled(NamedTuple):
    """What a program takes on each chip, in bytes.

    Attributes:
      name, calls: as in Program.
      arguments: of the program.
      output: beside the arguments that it overwrites.
      temporary: workspace.
      code: the program itself.
      resident: what else lies there.
      collectives: of one call.
      seconds: that compiling took.
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
        """Bytes on a chip while it runs."""
        return self.arguments + self.output + self.temporary + self.code + self.resident


def programs(plan: Plan, config) -> Iterator[Program]:
    """The programs of a step, in the order they run: those that `train.compile_step` jits, and the reward models'.

    The arrays between two programs are taken to lie with their rows split over the mesh, as the batch.
    """
    method = methods.get(config.method)
    host = any(plan.task.text_rewards)
    where = (jax.tree.map(lambda leaf: leaf.sharding, plan.state), sharding.replicated(plan.mesh))
    # The scorer is not called while compiling; that there is one parts the step in three.
    _, jitted = train.compile_step(plan.setup, method, object() if host else None, None, where)
    rewards, frozen, batch = plan.rewards, plan.frozen, plan.batch
    begins = (plan.state.replace(key=None), plan.state.key)
    if not host:
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
    """A reward model's program on its longest rows: jitted, shapes of a batch of rows, and calls for `count` rows."""
    model, rows = plan.classifiers[name], sharding.batch_sharding(plan.mesh)
    pieces = math.prod(plan.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    size = -(-config.reward.batch_size // pieces) * pieces
    length = min(reward_tokens(plan), model.max_length)
    of = lambda dtype: jax.ShapeDtypeStruct((size, length), dtype, sharding=rows)  # noqa: E731
    return jax.jit(model.apply), (of(jnp.int32), of(jnp.bool_), of(jnp.int32)), -(-count // size)


def reward_tokens(plan: Plan) -> int:
    """Tokens of a reward model's longest row: a prompt and a response, up to the bucket's length."""
    return text.bucket(plan.batch.tokens.shape[1] + plan.setup.max_new, formats.MAX_TOKENS)


def compile_program(program: Program, plan: Plan) -> Compiled:
    """Compiles one program. One that does not fit the chip at all comes back with the compiler's words as `problem`."""
    began = time.perf_counter()
    found = Compiled(program.name, program.calls, resident=bytes_on_chip(program.resident))
    try:
        with jax.set_mesh(plan.mesh):
            compiled = program.function.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        arguments, said = bytes_on_chip(program.args), " ".join(str(error).split())
        return found._replace(arguments=arguments, seconds=time.perf_counter() - began, problem=said[:400])
    memory = compiled.memory_analysis()
    return found._replace(
        arguments=float(memory.argument_size_in_bytes),
        output=float(max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)),
        temporary=float(memory.temp_size_in_bytes),
        code=float(memory.generated_code_size_in_bytes),
        collectives=hlo.collectives(compiled.as_text(), plan.mesh.size),
        seconds=time.perf_counter() - began,
    )


def bytes_on_chip(tree: PyTree) -> float:
    """Bytes that a chip holds of shapes with shardings."""

    def one(leaf) -> float:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.shape else ()
        width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf.dtype.itemsize
        return math.prod(shape) * width

    return float(sum(map(one, jax.tree.leaves(tree))))
