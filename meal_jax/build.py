"""From a configuration to what a run holds fixed: the benchmark, the modules, the optimizers and the parameters.

Letters: K objectives, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from meal_jax import methods
from meal_jax.meal import subset
from meal_jax.meal.clip import clip_by_global_norm
from meal_jax.meal.state import Frozen, MealConfig, Micro, Setup
from meal_jax.meal.weight_net import WeightNet
from meal_jax.models import lora
from meal_jax.models.policy import Policy, init_params
from meal_jax.rollout.sampling import Sampling
from meal_jax.rollout.weights import RolloutWeights
from meal_jax.runtime import sharding
from meal_jax.tasks import BENCHMARKS, attach_rewards
from meal_jax.tasks.task import Task

PyTree = Any


def build_task(config: ml_collections.ConfigDict) -> Task:
    """Loads the benchmark `config.task`, a module of `meal_jax.tasks` with a function `build`, and the run's rewards.

    Raises:
      ValueError: there is no such benchmark, or it and the configuration disagree on the objectives or the batch, or on
        the rewards (see `tasks.attach_rewards.attach`).
    """
    if config.task not in BENCHMARKS:
        raise ValueError(f"config.task={config.task!r} is not one of {', '.join(BENCHMARKS)}.")
    task = importlib.import_module(f"meal_jax.tasks.{config.task}").build(config)
    k = len(config.objectives)
    if config.eval.reference:
        task = task._replace(reference=np.array(config.eval.reference, np.float64))
    if not len(task.objectives) == task.conditioning.objectives == len(task.reference) == k:
        raise ValueError(
            f"config.objectives names {k} rewards {tuple(config.objectives)}, but the benchmark {task.name!r} gives "
            f"{len(task.objectives)} {task.objectives}, conditions on {task.conditioning.objectives} and measures the "
            f"hypervolume from a point of {len(task.reference)}."
        )
    for split, prompts, needed in (("training", task.train, config.batch_size), ("test", task.test, 1)):
        if len(prompts.id) < needed:
            raise ValueError(
                f"{task.name}: {len(prompts.id)} {split} prompts are fewer than the {needed} needed (config.batch_size for "
                "training, 1 for test). Give more, raise config.data.prompt_length, or lower config.batch_size."
            )
    return for_method(task if config.stage == "sft" else attach_rewards.attach(task, config), config)


def for_method(task: Task, config: ml_collections.ConfigDict) -> Task:
    """The benchmark with the policy that a method's configuration asks for: its adapters, how it reads a preference."""
    p = config.policy
    adapters = lora.Lora(p.lora_rank, p.lora_alpha, p.lora_dropout, p.lora_targets) if p.lora_rank else None
    return task._replace(
        transformer=dataclasses.replace(task.transformer, lora=adapters, attention=p.attention),
        conditioning=dataclasses.replace(
            task.conditioning, kind=config.conditioning.kind, prompt=config.conditioning.prompt
        ),
    )


def build_setup(config: ml_collections.ConfigDict, task: Task) -> Setup:
    """The modules, optimizers and rules that the step closes over."""
    policy = Policy(task.transformer, task.conditioning)
    plain = dataclasses.replace(task.conditioning, kind="none")
    # With adapters the policy's own frozen weights are the base, for a judge that reads it.
    judged = task.judged_by_base and task.transformer.lora is None
    method = methods.get(config.method)
    reads_base = task.reward_reads_base or config.meal.beta > 0 or judged or method.reads_base
    base = Policy(dataclasses.replace(task.transformer, lora=None), plain)
    at_hand = reads_base or task.transformer.lora is not None
    fields = {f.name for f in dataclasses.fields(MealConfig)}
    s = config.sampling
    return Setup(
        policy=policy,
        base=base if reads_base else None,
        net=WeightNet(config.meal.net_hidden, config.meal.net_epsilon, config.meal.net_features),
        policy_tx=policy_optimizer(config, method.cost(config).updates),
        net_tx=optax.adam(config.optim.net_lr),
        meal=MealConfig(**{name: value for name, value in config.meal.items() if name in fields}),
        sampling=Sampling(s.temperature, s.top_k, s.top_p, s.draw, compact=s.compact),
        max_new=config.sampling.max_new,
        end=task.end,
        pad=task.pad,
        forbidden=None if task.forbidden is None else jnp.asarray(task.forbidden),
        objectives=tuple(task.objectives),
        reward=task.reward,
        reward_reads_base=task.reward_reads_base,
        keep_reference=config.meal.beta > 0 or method.keeps_reference,
        chunk=config.policy.chunk,
        micro=Micro(**config.micro),
        rollout_weights=RolloutWeights(**config.rollout),
        prompt_length=task.train.tokens.shape[1],
        options=method.options(config),
        judge_of_fluency=base if at_hand and task.weights is not None else None,
    )


def policy_optimizer(config: ml_collections.ConfigDict, updates: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; warm-up, then cosine decay over the run's updates, a few per step."""
    o = config.optim
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, o.lr, o.warmup, max(updates * config.steps, o.warmup + 1), end_value=o.lr * o.final_lr_fraction
    )
    adam = optax.adamw(schedule, o.b1, o.b2, o.eps, o.eps_root, weight_decay=o.weight_decay)
    return optax.chain(clip_by_global_norm(o.clip), adam)


def mesh_of(
    config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None, evaluates: bool = True
) -> jax.sharding.Mesh:
    """The configuration's mesh over the devices, once every batch that will be split over it is known to divide.

    Args:
      config: of a run, or of its stage sft.
      devices: all of JAX's by default.
      evaluates: the run also answers `config.eval.batch_size` prompts at a time.

    Raises:
      ValueError: the mesh does not fit the devices, or a batch does not divide; names the field.
    """
    h = config.mesh
    mesh = sharding.make_mesh(h.data, h.fsdp, h.tensor, jax.devices() if devices is None else devices, h.slices)
    if config.stage == "sft":
        sharding.check_batch(mesh, config.batch_size, "config.batch_size")
    else:
        sharding.check_batch(mesh, config.batch_size // 2, "half of config.batch_size")
        if config.meal.net:
            taken = subset.size(config.batch_size // 2, config.meal.meta_fraction)
            sharding.check_batch(mesh, taken, "config.meal.meta_fraction of half of config.batch_size")
        for name, prompts in config.micro.items():
            if prompts:
                sharding.check_batch(mesh, prompts, f"config.micro.{name}")
    if evaluates:
        sharding.check_batch(mesh, config.eval.batch_size, "config.eval.batch_size")
    return mesh


def run_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of a run's state and of its initial weights; a base drawn at random is drawn again by the same key."""
    state_key, policy_key = jax.random.split(jax.random.key(seed))
    return state_key, policy_key


def abstract_state(setup: Setup, task: Task, init: Callable, mesh: jax.sharding.Mesh) -> tuple[PyTree, Frozen]:
    """Shapes, types and shardings of a run's state and frozen parts, without a number of them.

    Args:
      setup, task: of the run.
      init: (setup, θ, key) → the state at step 0.
      mesh: of devices, which need not exist.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    theta, frozen = jax.eval_shape(functools.partial(init_policy, setup, task), key)
    state = jax.eval_shape(functools.partial(init, setup), theta, key)
    return tuple(sharding.abstract(tree, sharding.shardings(tree, mesh)) for tree in (state, frozen))


def make_policy(setup: Setup, task: Task, key: jax.Array, mesh: jax.sharding.Mesh) -> tuple[PyTree, Frozen]:
    """`init_policy` with every leaf made, or read from its file, where it will live on the mesh, and held once."""
    abstract = jax.eval_shape(functools.partial(init_policy, setup, task), key)
    placed = sharding.shardings(abstract, mesh)
    weights = None
    if task.weights is not None:
        theta, frozen = placed
        _, where = lora.split((theta if setup.policy.config.lora is None else frozen.policy), lora.is_adapter)
        weights = task.weights(where["transformer"])
    # Donated: the weights pass through the program without a copy.
    make = jax.jit(functools.partial(init_policy, setup, task), out_shardings=placed, donate_argnums=1)
    return make(key, weights)


def init_policy(setup: Setup, task: Task, key: jax.Array, weights: PyTree | None = None) -> tuple[PyTree, Frozen]:
    """The policy's trainable leaves θ, and everything frozen. Pure and traceable.

    Args:
      setup, task: of the run.
      key: of what is drawn at random.
      weights: the transformer's parameters; None draws them too.

    Returns:
      θ, the adapters and the conditioning where there are adapters, all of the policy's weights where there are none; and
      Frozen.
    """

    params = init_params(setup.policy, key)
    if weights is not None:
        adapters, _ = lora.split(params, lora.is_adapter)
        params = lora.merge(adapters, {"transformer": weights})
    theta, frozen = params, {}
    if task.transformer.lora is not None:
        theta, frozen = lora.split(params, lora.is_adapter)
    base = None
    if setup.base is not None and task.transformer.lora is None:
        base, _ = lora.split(params, lambda path: not lora.is_adapter(path))
    return theta, Frozen(frozen, base, task.reward_params)
