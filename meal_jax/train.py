"""A run: mesh → data → models → state → restore → loop → front. It reads top to bottom.

Everything a run writes is under its workdir:
    config.json          the configuration as run
    metrics.jsonl        one line a step (and TensorBoard events beside it)
    checkpoints/         the newest states; running the same command again goes on from there
    evals/STEP.json      the front at a step
    pareto.json          the last front, the first, hypervolumes, sample answers
    pareto.png           the front, with those of `config.beside`, which have a folder of their own each
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from meal_jax import build, evaluate, methods
from meal_jax.config import check
from meal_jax.data.pipeline import batch_at, prefetch
from meal_jax.meal.step import Batch, Frozen, Setup, State
from meal_jax.pareto import figures
from meal_jax.rewards import sources
from meal_jax.rewards.text import TextScorer
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import checkpoint, sharding
from meal_jax.runtime.metrics import MetricWriter, Preemption, progress
from meal_jax.tasks.task import Task


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Trains `config.method` and then each method of `config.beside`, and draws their fronts in one figure.

    Returns:
      The results by method as in `pareto.json`, or None if the run was told to stop before its end.
    """
    root, names = Path(workdir), [config.method, *[n for n in config.beside if n != config.method]]
    check(config)
    configs = {name: methods.configure(name, config) for name in names}
    task = build.build_task(config)
    results = {}
    for name, its in configs.items():
        folder = root if name == config.method else root / name
        done = train_and_evaluate(its, methods.get(name), build.for_method(task, its), folder)
        if done is None:
            return None
        results[name] = done
    _report(results, task, root)
    return results


def train_and_evaluate(
    config: ml_collections.ConfigDict, method: methods.Method, task: Task, workdir: Path
) -> dict[str, Any] | None:
    """Trains one method, resuming what `workdir` holds, and evaluates it.

    Args:
      config: the method's version of the configuration.
      method: its functions.
      task: the benchmark.
      workdir: where everything is written.

    Returns:
      What `pareto.json` holds, or None if SIGTERM or Ctrl-C ended the run early (the state is saved).

    Raises:
      FloatingPointError: a reward or a loss is not a finite number; the last checkpoint is from before it.
    """
    # ---------------------------------------------------------------------------------------------- devices
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    sharding.check_batch(mesh, config.batch_size // 2, "half of config.batch_size")
    sharding.check_batch(mesh, config.eval.batch_size, "config.eval.batch_size")
    write_config(config, workdir)

    # ---------------------------------------------------------------------------------------------- modules, state
    setup = build.build_setup(config, task)
    with jax.set_mesh(mesh), contextlib.ExitStack() as at_exit:
        # ------------------------------------------------------------------------------------------ resume or begin
        checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        at_exit.callback(checkpoint.close, checkpoints)  # however the run ends, the save under way is finished
        start, state, frozen, placed = begin(config, setup, task, method.init, mesh, checkpoints)
        for path in (workdir / "evals").glob("*.json"):
            if start == 0 or int(path.stem) > start:  # of states that are gone: they will be made, and judged, again
                path.unlink()

        # ------------------------------------------------------------------------------------------ compiled functions
        batch_placed = sharding.batch_sharding(mesh)
        place = functools.partial(jax.device_put, device=batch_placed)
        scorer = sources.scorer(task, mesh, frozen)  # of rewards that read text; None where the device has them all
        train_step, programs = compile_step(setup, method, scorer, place, (placed, sharding.replicated(mesh)))
        e = config.eval
        sampling = Sampling(e.temperature, e.top_k, e.top_p, config.sampling.draw)
        answer = jax.jit(evaluate.answer_fn(setup, method, sampling))
        preferences = evaluate.grid(config)

        def eval_now(at: int, state: State) -> dict[str, Any]:
            path = workdir / "evals" / f"{at:06d}.json"
            if path.exists():  # a resumed run does not pay twice
                return json.loads(path.read_text())
            answers = evaluate.evaluate(
                answer, state, frozen, task.test, preferences, batch_size=e.batch_size, seed=config.seed, place=place,
                scorer=scorer,
            )  # fmt: skip
            out = {"step": at} | evaluate.summarise(answers, preferences, task, e.bootstrap)
            out["samples"] = evaluate.sample_answers(answers, preferences, task, e.samples)
            write_json(path, out)
            return out

        # ------------------------------------------------------------------------------------------ loop
        writer = MetricWriter(workdir, tensorboard=config.tensorboard, start_step=start)
        at_exit.callback(writer.close)

        def make(at: int) -> Batch:
            return batch_at(task.train, at, config.batch_size, config.seed, config.data.buckets, batch_placed)

        def step(state: State, batch: Batch):
            return train_step(state, frozen, batch)

        def measure(at: int, state: State) -> dict[str, float]:
            return {"eval/hypervolume": eval_now(at, state)["hypervolume"]}

        state, seconds = loop(
            config, workdir, start, state, step, make, measure, checkpoints, writer, label=method.label, show="utility"
        )
        if state is None:
            return None

        # ------------------------------------------------------------------------------------------ front
        last = eval_now(config.steps, state)
        writer.write(config.steps, {"eval/hypervolume": last["hypervolume"]})
    history = [json.loads(path.read_text()) for path in sorted((workdir / "evals").glob("*.json"))]
    results = {
        "task": task.name,
        "method": method.label,
        "seed": config.seed,
        "objectives": list(config.objectives),
        "seconds_training": seconds if start == 0 else None,  # of a resumed run only a part is known
        "budget": evaluate.budget(method.cost(config), config, workdir / "metrics.jsonl"),
        "compiled": max(program._cache_size() for program in programs),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        **last,
        "before": {name: value for name, value in history[0].items() if name != "samples"},
        "history": [{"step": h["step"], "hypervolume": h["hypervolume"]} for h in history],
    }
    write_json(workdir / "pareto.json", results)
    return results


def begin(
    config: ml_collections.ConfigDict, setup: Setup, task: Task, init: Callable, mesh: Any, checkpoints: Any
) -> tuple[int, Any, Frozen, Any]:
    """A run's state, restored or new, each leaf made where it will live.

    Args:
      config, setup, task: of the run.
      init: (setup, θ, key) → the state at step 0.
      mesh: of devices, set as the current one.
      checkpoints: opened; None begins anew.

    Returns:
      Steps done, the state, what training only reads, and the state's shardings.
    """
    key, policy_key = jax.random.split(jax.random.key(config.seed))
    theta, frozen = build.make_policy(setup, task, policy_key, mesh)
    init = functools.partial(init, setup)
    abstract = jax.eval_shape(init, theta, key)
    placed = sharding.shardings(abstract, mesh)
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placed)
    restored = None if checkpoints is None else checkpoint.restore_latest(checkpoints, abstract)
    if restored is None:
        return 0, jax.jit(init, out_shardings=placed)(theta, key), frozen, placed
    start, state, _ = restored
    logging.info("going on from step %d of %d", start, config.steps)
    return start, state, frozen, placed


def loop(
    config: ml_collections.ConfigDict,
    workdir: Path,
    start: int,
    state: Any,
    step: Callable,
    make: Callable,
    measure: Callable,
    checkpoints: Any,
    writer: MetricWriter,
    *,
    label: str,
    show: str,
) -> tuple[Any, float]:
    """Steps `start` … `config.steps` - 1, with metrics, checkpoints and evaluations as the configuration spaces them.

    Args:
      config, workdir: of the run.
      start: steps done.
      state: after them; donated.
      step: (state, batch) → state, metrics.
      make: step → its batch, on its devices; runs ahead in a thread.
      measure: (step, state) → figures to write and show, every `config.eval.every` steps.
      checkpoints, writer: opened; closed by who opened them.
      label: of the progress bar.
      show: name of the metric that the bar shows.

    Returns:
      The last state and the seconds taken; None in place of the state if SIGTERM or Ctrl-C came first (it is saved).

    Raises:
      FloatingPointError: a metric is not a finite number; the last checkpoint is from before it.
    """
    shown, pending, done, began, preempted = {}, None, start, time.perf_counter(), False

    def settle(pending):
        """Fetches and checks a step's metrics, by now computed while the next step runs."""
        if pending is not None:
            at, on_device = pending
            values = {name: float(v) for name, v in jax.device_get(on_device).items()}
            _refuse_non_finite(at, values, config.objectives, workdir)
            writer.write(at, values)
            shown[show] = values[show]

    with (
        Preemption() as preemption,
        progress(config.steps, start, label) as bar,
        prefetch(make, start, config.steps) as next_batch,
    ):
        for at in range(start, config.steps):
            if at % config.eval.every == 0:
                figures_now = measure(at, state)
                writer.write(at, figures_now)
                shown |= {name.rpartition("/")[2]: value for name, value in figures_now.items()}
            batch, wait = next_batch()
            state, metrics = step(state, batch)
            settle(pending)  # of the step before: the device is never waited for
            pending, done = (at, metrics | {"time/data_wait": wait}), at + 1
            bar.update(done, **shown)
            preempted = preemption.requested
            if done % config.checkpoint.every == 0 or done == config.steps or preempted:
                settle(pending)  # a state is saved only once its own step is known to be sound
                pending = None
                writer.flush()
                checkpoint.save(checkpoints, done, state, {"config": json.loads(config.to_json_best_effort())})
            if preempted:
                break
    checkpoint.wait(checkpoints)
    seconds = time.perf_counter() - began
    if preempted and done < config.steps:
        logging.warning("stopped at step %d of %d; run the same command to go on", done, config.steps)
        return None, seconds
    return state, seconds


def compile_step(
    setup: Setup, method: methods.Method, scorer: TextScorer | None, place: Callable, out_shardings: Any
) -> tuple[Callable, list[Callable]]:
    """The step as the loop calls it: (state, frozen, Batch) → (state, metrics), the state donated.

    It is one program where the device computes every reward. Else it is three, rollout, score and update, and between the
    last two the host adds the rewards that read text.

    Args:
      setup, method: what runs.
      scorer: of the rewards that read text, or None.
      place: puts a batch's arrays on the devices.
      out_shardings: of (state, metrics).

    Returns:
      The step and its jitted programs.
    """
    if scorer is None:
        step = jax.jit(functools.partial(method.step, setup), donate_argnums=0, out_shardings=out_shardings)
        return step, [step]
    rollout, score, update = jit_parts(setup, method, out_shardings)

    def step(state: State, frozen: Frozen, batch: Batch):
        rolled = rollout(state, frozen, batch)
        scores = score(frozen, batch, rolled.responses)
        ids, tokens, mask, rewards = jax.device_get(
            (batch.id, rolled.responses.tokens, rolled.responses.mask, scores.rewards)
        )
        rewards, cost = scorer.complete([scorer.texts[i] for i in ids.tolist()], tokens, mask, rewards)
        state, metrics = update(state, frozen, batch, rolled, scores._replace(rewards=place(rewards)))
        return state, metrics | cost

    return step, [rollout, score, update]


def jit_parts(setup: Setup, method: methods.Method, out_shardings: Any) -> tuple[Callable, Callable, Callable]:
    """The step's three parts, each jitted: rollout, score, and update, which donates the state."""
    rollout = jax.jit(functools.partial(method.rollout, setup))
    score = jax.jit(functools.partial(method.score, setup))
    update = jax.jit(functools.partial(method.update, setup), donate_argnums=0, out_shardings=out_shardings)
    return rollout, score, update


def _refuse_non_finite(at: int, values: dict[str, float], objectives, workdir: Path) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    rewards = [name for name in objectives if f"reward/{name}/mean" in bad]
    what = f"the reward of objective {', '.join(map(repr, rewards))}" if rewards else f"{', '.join(bad)}"
    raise FloatingPointError(
        f"step {at}: {what} is not a finite number. Training stopped; {workdir / 'checkpoints'} keeps the last state "
        "from before it. Check what the reward returns for the newest responses, or lower config.optim.lr."
    )


def _report(results: dict[str, Any], task: Task, root: Path) -> None:
    """Draws the fronts of all methods into `pareto.png` and prints a table."""
    fronts = []
    for name, r in results.items():
        arrays = [np.array(r[field]) for field in ("preferences", "points", "points_low", "points_high")]
        fronts.append(figures.Front(methods.get(name).label, *arrays))
    first = next(iter(results.values()))
    before = first["before"]
    fronts.append(
        figures.Front("before training", np.array(before["preferences"]), np.array(before["points"]), style="before")
    )
    truth = evaluate.true_front(task) if task.truth is not None else None
    path = root / "pareto.png"
    figures.draw_fronts(path, fronts, task.objectives, truth=truth, title=task.name)
    print(f"\n{'':16} {'hypervolume':>12} {'95 % interval':>18} {'of the true':>12} {'inner product':>14}")
    for r in [dict(first["before"], method="before training"), *results.values()]:
        low, high = r["hypervolume_interval"]
        share = f"{r['share_of_true_hypervolume']:.3f}" if "share_of_true_hypervolume" in r else "–"
        interval = f"{low:.3f} … {high:.3f}"
        print(f"{r['method']:16} {r['hypervolume']:12.4f} {interval:>18} {share:>12} {r['mean_inner_product']:14.4f}")
    print(f"\nfronts: {root / 'pareto.json'}\nfigure: {path}")


def write_config(config: ml_collections.ConfigDict, workdir: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all: a run killed here leaves no half file to be mistaken for a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)
