"""Supervised fine-tuning, the stage before alignment: the policy learns the benchmark's preferred responses.

    python -m meal_jax.main --config=configs/reddit_small.py --config.stage=sft --workdir=runs/reddit_sft
    python -m meal_jax.main --config=configs/reddit_small.py --config.policy.source=runs/reddit_sft/model --workdir=…

Trained on are the prompts that alignment trains on, held out those that it is evaluated on, each with every response that
the benchmark's data prefers. A response of more than `config.sampling.max_new` tokens, its end included, is left out and
not cut: the policy shall learn to come to an end within them. The policy reads no preference at this stage. A model that
was tuned has other hidden states, so reward heads fitted on the model before it are refused: fit them on WORKDIR/model.

Written to the workdir are config.json, metrics.jsonl and checkpoints/ as in `train`, then model/, a Hugging Face directory
with the adapters folded in, and sft.json, the held-out loss before and after.

Letters: R rows, B rows of a batch, S prompt tokens, T response tokens, K objectives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from flax import traverse_util

from meal_jax import build, inputs, methods, run_writer, track, train
from meal_jax.compiled_step import without_key
from meal_jax.config import check
from meal_jax.data import chat as chats
from meal_jax.data import overlap
from meal_jax.data.pipeline import index_at, take
from meal_jax.data.prompts import Prompts
from meal_jax.export import model_directory
from meal_jax.meal.bilevel import token_loss
from meal_jax.meal.step import Frozen, Setup, read
from meal_jax.models import lora
from meal_jax.runtime import checkpoint, compiler, distributed, identity, profiling, series, sharding
from meal_jax.saved_run import Run, need_same, record_config
from meal_jax.tasks.language import TUNED
from meal_jax.tasks.task import Task

PyTree = Any


class Examples(NamedTuple):
    """Prompts with a response each: tokens, mask [R, S], padded on the left; response, response_mask [R, T], on the right."""

    tokens: np.ndarray
    mask: np.ndarray
    response: np.ndarray
    response_mask: np.ndarray


@flax.struct.dataclass
class State:
    """What fine-tuning changes; fields as in `meal.step.State`."""

    step: jax.Array
    policy: PyTree
    policy_opt: PyTree
    key: jax.Array


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Fine-tunes the policy, resuming what `workdir` holds, and writes the model.

    Returns:
      What `sft.json` holds, or None if SIGTERM or Ctrl-C ended the run early (the state is saved).

    Raises:
      ValueError: the benchmark has no responses to learn, or too few that fit.
    """
    check(config)
    track.need(config.track)
    config, root = configure(config), Path(workdir).expanduser()
    record = distributed.from_first(lambda: finished(root, config))
    if record is not None:
        _say(record, root)
        return record | {"compiled": 0}  # by this call
    task = build.build_task(config)
    answers = getattr(importlib.import_module(f"meal_jax.tasks.{config.task}"), "answers", None)
    if answers is None:
        raise ValueError(f"config.stage=sft: the benchmark {config.task} has no responses to learn.")
    answers, left_out = answers(config), Counter()
    if not answers:
        raise ValueError(
            f"config.stage=sft found no answer to learn in {config.data.path}: give rows a `response`, `chosen`, or messages "
            "that end with the assistant's (docs/models_and_rewards.md, Data)."
        )
    rows, held = (
        examples(task, prompts, answers, config.sampling.max_new, left_out) for prompts in (task.train, task.test)
    )
    if len(rows.mask) < config.batch_size or not len(held.mask):
        raise ValueError(
            f"config.stage=sft found {len(rows.mask)} responses to train on and {len(held.mask)} held out; needed are "
            f"config.batch_size={config.batch_size} and 1. Left out: {_list(left_out)}. Raise config.sampling.max_new or "
            "config.data.prompt_length, or give more data."
        )
    mesh = build.mesh_of(config)
    distributed.check_shared(root)

    setup = build.build_setup(config, task)
    setup = dataclasses.replace(setup, policy_tx=build.policy_optimizer(config, 1))
    with jax.set_mesh(mesh), contextlib.ExitStack() as at_exit:
        at_exit.enter_context(identity.hold(root))
        if "eval.prompts" in distributed.from_first(lambda: list(need_same(root, config))):
            raise ValueError(
                f"{root} measured its loss over other held-out prompts, with which the loss before training belongs: keep "
                "config.eval.prompts, or give this run a --workdir of its own."
            )
        data = {"training rows": rows, "held-out rows": held}
        found = distributed.from_first(lambda: inputs.need_same(root, inputs.digests(config, data), config))
        checkpoints = checkpoint.open_checkpoints(root / "checkpoints", keep=config.checkpoint.keep)
        at_exit.callback(checkpoint.close, checkpoints)
        start, state, frozen, placed, meta = train.begin(config, setup, task, init, mesh, checkpoints)
        kept = distributed.from_first(lambda: series.restore(meta, root, start, ("eval/loss",)))
        distributed.from_first(lambda: record_config(root, config))
        at_exit.enter_context(inputs.recorded(root, start, found))
        writer = run_writer.open_writer(config, root, start, ("eval/loss",))
        at_exit.callback(writer.close)
        split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        compiled = jax.jit(
            without_key(functools.partial(update, setup)),
            donate_argnums=0,
            out_shardings=(placed.replace(key=None), everywhere),
            compiler_options=compiler.options(everywhere),
        )
        loss = jax.jit(functools.partial(loss_of, setup), out_shardings=everywhere)

        def make(step: int) -> Examples:
            index, cut = index_at(rows.mask, step, config.batch_size, config.seed, config.data.buckets)
            return Examples(*take((rows.tokens[:, cut:], rows.mask[:, cut:], *rows[2:]), index, split))

        def measure(step: int, state: State, stop: Callable[[], bool]) -> dict[str, float]:
            return {"eval/loss": held_out(loss, state.policy, frozen, held, config.eval.batch_size, split)}

        def step(state: State, batch: Examples, run: profiling.Run):
            new, metrics = run("device", compiled, state.replace(key=None), state.key, frozen, batch)
            return new.replace(key=state.key), metrics

        state, seconds = train.loop(
            config,
            root,
            start,
            state,
            step,
            make,
            measure,
            checkpoints,
            writer,
            label="SFT",
            show={"loss": "loss", "eval/loss": "held-out loss"},
            kept=kept,
        )
        if state is None:
            return None
        last = measure(config.steps, state, lambda: False)
        writer.write(config.steps, last)
        writer.flush()
        series.add(kept, config.steps, last)
        history = [{"step": step, "loss": loss} for step, loss in kept["eval/loss"]]
        earlier = distributed.from_first(lambda: _seconds(root, start, config.steps))
        results = {
            "task": task.name,
            "stage": "sft",
            "from": str(config.policy.source),
            "seed": config.seed,
            "steps": config.steps,
            "rows": len(rows.mask),
            "rows_held_out": len(held.mask),
            "splits": overlap.of_prompts(task.train, task.test),
            "left_out": dict(left_out),
            "held_out_loss": {"before": history[0]["loss"], "after": history[-1]["loss"]},
            "history": history,
            "evaluation_set": task.evaluation_set,
            "seconds_training": seconds if start == 0 else earlier,  # of a resumed run only a part is known
            "compiled": compiled._cache_size(),
            "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        }
    if jax.process_count() > 1:
        logging.warning("run the same command in one process to write %s", root / "model")
    else:
        save(
            root / "model",
            Run(root, config, methods.get(config.method), task, setup, config.steps, state, frozen),
            results,
        )
    if distributed.is_first():
        train.write_json(root / TUNED, results)
        _say(results, root)
    return results


def finished(workdir: Path, config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    """What `sft.json` records, if it is this configuration's end and the model is there; else None.

    Raises:
      ValueError: see `saved_run.need_same`.
    """
    differing = need_same(workdir, config)
    record = train.read_json(workdir / TUNED)
    whole = record is not None and record.get("steps") == config.steps and (workdir / "model").is_dir()
    return record if whole and not identity.measures_otherwise(differing) else None


def _seconds(workdir: Path, start: int, steps: int) -> float | None:
    record = train.read_json(workdir / TUNED) or {}
    return record.get("seconds_training") if record.get("steps") == start == steps else None


def _say(results: Mapping[str, Any], workdir: Path) -> None:
    loss = results["held_out_loss"]
    if distributed.is_first():
        print(f"held-out loss: {loss['before']:.4f} before, {loss['after']:.4f} after\nmodel: {workdir / 'model'}")


def configure(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The stage's version of a configuration: no preference, no method, no divergence from the start."""
    out = config.copy_and_resolve_references()
    out.method, out.compare_with, out.conditioning.kind = "meal", (), "none"
    out.meal.net, out.meal.beta = False, 0.0
    return out


def examples(
    task: Task, prompts: Prompts, answers: Mapping[int, Sequence[str]], max_new: int, left_out: Counter
) -> Examples:
    """Every prompt with each of its responses.

    Args:
      task: for its chat and the tokens that no response holds.
      prompts: of one split.
      answers: texts by the id of their prompt.
      max_new: T; longer responses are left out.
      left_out: counts those, by reason.
    """
    position, ids = [], []
    for i, name in enumerate(prompts.id.tolist()):
        for text in answers.get(name, ()):
            tokens = chats.response_ids(task.chat, text)
            if not text:
                left_out["empty"] += 1
            elif len(tokens) > max_new:
                left_out[f"longer than {max_new} tokens"] += 1
            elif max(tokens) >= len(task.forbidden):
                left_out["with a token that the embedding has no row for"] += 1
            elif task.forbidden[tokens].any():  # its log-probability is 0's
                left_out["with a special token"] += 1
            else:
                position.append(i)
                ids.append(tokens)
    response = np.full((len(ids), max_new), task.pad, np.int32)
    mask = np.arange(max_new) < np.array([len(tokens) for tokens in ids], np.int32).reshape(-1, 1)
    response[mask] = [token for tokens in ids for token in tokens]
    position = np.array(position, np.int64)
    return Examples(prompts.tokens[position], prompts.mask[position], response, mask)


def init(setup: Setup, theta: PyTree, key: jax.Array) -> State:
    """A state at step 0 from the policy's trainable leaves and a typed key."""
    return State(jnp.zeros((), jnp.int32), theta, setup.policy_tx.init(theta), key)


def loss_of(
    setup: Setup, theta: PyTree, frozen: Frozen, rows: Examples, dropout_key: jax.Array | None = None
) -> jax.Array:
    """− mean of log π_θ over the tokens of all responses; the prompt's and the padding do not count."""
    unread = jnp.zeros((rows.mask.shape[0], 1, len(setup.objectives)))
    token, _ = read(setup, theta, frozen, rows, unread, rows.response[:, None], dropout_key=dropout_key)
    return token_loss(token.logp, rows.response_mask[:, None])


def update(setup: Setup, state: State, frozen: Frozen, rows: Examples) -> tuple[State, dict[str, jax.Array]]:
    """One optimizer step on a batch, and its metrics."""
    key = jax.random.fold_in(state.key, state.step)
    loss, grads = jax.value_and_grad(lambda theta: loss_of(setup, theta, frozen, rows, key))(state.policy)
    updates, opt = setup.policy_tx.update(grads, state.policy_opt, state.policy)
    new = state.replace(step=state.step + 1, policy=optax.apply_updates(state.policy, updates), policy_opt=opt)
    length = jnp.mean(jnp.sum(rows.response_mask, axis=-1, dtype=jnp.float32))
    return new, {"loss": loss, "grad_norm/policy": optax.tree.norm(grads), "response/length": length}


def held_out(
    loss: Callable, theta: PyTree, frozen: Frozen, rows: Examples, batch_size: int, placed: jax.sharding.Sharding
) -> float:
    """The mean loss of a token over all rows, in batches of one shape; `loss` is `loss_of`, jitted."""
    total, tokens = 0.0, 0
    for start in range(0, len(rows.mask), batch_size):
        index = np.arange(start, start + batch_size)
        real = (index < len(rows.mask))[:, None]  # the last batch is filled with rows that do not count
        batch = Examples(*(field[np.minimum(index, len(rows.mask) - 1)] for field in rows))
        batch = batch._replace(response_mask=batch.response_mask & real)
        count = int(batch.response_mask.sum())
        total += count * float(loss(theta, frozen, Examples(*take(batch, np.arange(batch_size), placed))))
        tokens += count
    return total / tokens


def save(directory: Path, run: Run, results: Mapping[str, Any]) -> None:
    """Writes the tuned model as a Hugging Face directory, whole or not at all: weights, tokenizer, `results`."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    flat = traverse_util.flatten_dict(lora.merge(run.state.policy, run.frozen.policy), sep="/")
    model_directory.save_merged(partial, run, flat, (), None, run.task.transformer.param_dtype)
    model_directory.write_json(partial / "generation_config.json", model_directory.special_ids(run))
    tokenizer = run.task.chat.tokenizer
    model_directory.save_tokenizer(partial, tokenizer, tokenizer.chat_template, run.config.policy.source)
    model_directory.write_json(partial / TUNED, results)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _list(left_out: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
