"""A run: mesh → data → models → state → restore → loop → front. It reads top to bottom.

Every process of a run goes through all of it; what is below is written by process 0, checkpoints by all.

A workdir records one run (`runtime.identity`): another configuration is refused there, nothing is written before the state was
restored, and a run that is finished is left as it is.

Everything a run writes is under its workdir:
    config.json          the configuration as run, which identifies it
    inputs.json          digests of what it read besides: rewards, prompts, weights (`meal_jax.inputs`)
    metrics.jsonl        one row per step, docs/metrics.md (and TensorBoard events beside it, and config.track)
    checkpoints/         the newest states; running the same command again resumes from there
    evals/STEP.json      the front at a step; evals_N/ those under earlier settings of config.eval
    pareto.json          the last front, the first, hypervolumes, sample answers
    pareto.png           the front, with those of `config.compare_with`, which have a folder of their own each
    report.html          front, answers by preference, curves, budget and configuration on one page (`meal_jax.report`)
    profile/             the trace of `config.profile_steps`
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from meal_jax import build, evaluate, inputs, methods, run_writer, track
from meal_jax.compiled_step import compile_step
from meal_jax.config import check
from meal_jax.data import overlap
from meal_jax.data.pipeline import batch_at, prefetch
from meal_jax.meal import halt
from meal_jax.meal.step import Batch, Frozen, Setup, State
from meal_jax.pareto import figures
from meal_jax.pareto.front_table import front_table
from meal_jax.report import write as report
from meal_jax.rewards import sources
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import checkpoint, compiler, distributed, identity, profiling, series, sharding
from meal_jax.runtime.metrics import MetricWriter, Preemption, progress
from meal_jax.saved_run import (
    finished,
    need_same,
    need_same_prompts,
    read_history,
    read_json,
    record_config,
    recorded_reference,
    take_over,
    write_json,
)
from meal_jax.tasks import attach_rewards
from meal_jax.tasks.task import Task

FIGURE = "pareto.png"


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any] | None:
    """Trains `config.method` and then each method of `config.compare_with`, and draws their fronts in one figure.

    Returns:
      The results by method as in `pareto.json`, or None if the run was told to stop before its end.

    Raises:
      ValueError: `workdir` holds another run, or another process writes there.
    """
    track.need(config.track)
    root, names = Path(workdir).expanduser(), [config.method, *[n for n in config.compare_with if n != config.method]]
    check(config)
    configs = {name: methods.configure(name, config) for name in names}
    for run_config in configs.values():
        check(run_config)  # what a field asks for may depend on the method
    folders = {name: root if name == config.method else root / name for name in names}

    def left_alone() -> bool:
        """Whether all is done and drawn. Looks at every method's directory before any of them is touched."""
        differing = [need_same(folders[name], run_config) for name, run_config in configs.items()]
        done = all(finished(folders[name], run_config) for name, run_config in configs.items())
        return done and not any(differing) and (figures.drawn(config.objectives) == (root / FIGURE).exists())

    alone = distributed.from_first(left_alone)
    if not alone:
        for run_config in configs.values():
            build.mesh_of(run_config)  # before anything is read or written
    task = build.build_task(config)
    attach_rewards.warn_of_reference(task, config)
    results = {}
    with contextlib.ExitStack() as at_exit:
        if not alone:
            at_exit.enter_context(identity.hold(root))
        for name, run_config in configs.items():
            done = train_and_evaluate(run_config, methods.get(name), build.for_method(task, run_config), folders[name])
            if done is None:
                return None
            results[name] = done
            task = task._replace(reference=np.array(done["reference"]))  # all methods are measured from one point
        distributed.from_first(lambda: _report(results, sources.describe(config), task, root, draw=not alone))
    return results


def train_and_evaluate(
    config: ml_collections.ConfigDict, method: methods.Method, task: Task, workdir: Path
) -> dict[str, Any] | None:
    """Trains one method, resuming what `workdir` holds, and evaluates it; what is finished is not done again.

    Args:
      config: the method's version of the configuration.
      method: its functions.
      task: the benchmark.
      workdir: where everything is written.

    Returns:
      What `pareto.json` holds, or None if SIGTERM or Ctrl-C ended the run early (the state is saved).

    Raises:
      ValueError: `workdir` holds another run, or another process writes there; nothing was changed.
      FloatingPointError: a reward or a loss is not a finite number; the last checkpoint is from before it.
    """
    record = distributed.from_first(lambda: finished(workdir, config))
    if record is not None:
        record_config(workdir, config)
        return record | {"compiled": 0}  # by this call

    # ---------------------------------------------------------------------------------------------- devices
    mesh = build.mesh_of(config)
    distributed.check_shared(workdir)

    # ---------------------------------------------------------------------------------------------- modules, state
    setup = build.build_setup(config, task)
    with jax.set_mesh(mesh), contextlib.ExitStack() as at_exit:
        # ------------------------------------------------------------------------------------------ resume or begin
        at_exit.enter_context(identity.hold(workdir))
        measured_otherwise = distributed.from_first(lambda: identity.measures_otherwise(need_same(workdir, config)))
        rows = {"training prompts": task.train}
        found = distributed.from_first(lambda: inputs.need_same(workdir, inputs.digests(config, rows), config))
        checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        at_exit.callback(checkpoint.close, checkpoints)  # however the run ends, the save under way is finished
        start, state, frozen, placed, meta = begin(config, setup, task, method.init, mesh, checkpoints)
        distributed.from_first(lambda: need_same_prompts(workdir, task.evaluation_set))
        kept = distributed.from_first(lambda: series.restore(meta, workdir, start, ("response/length",)))
        distributed.from_first(lambda: take_over(workdir, config, start, measured_otherwise))
        at_exit.enter_context(inputs.recorded(workdir, start, found))

        # ------------------------------------------------------------------------------------------ compiled functions
        batch_placed, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        place = functools.partial(sharding.put, sharding=batch_placed)
        scorer = attach_rewards.scorer(task, mesh, frozen)  # of rewards that read text; None without such
        out = (placed, everywhere)
        halts = any(task.token_functions)
        train_step, programs = compile_step(setup, method, scorer, place, out, config.timed, halts)
        e = config.eval
        s = config.sampling
        sampling = Sampling(e.temperature, e.top_k, e.top_p, s.draw, compact=s.compact)
        # Whole on every process: each reads all answers.
        answer = jax.jit(evaluate.answer_fn(setup, method, sampling, fluently=True), out_shardings=everywhere)
        preferences = evaluate.grid(config)

        def eval_now(step: int, state: State, stop: Callable[[], bool]) -> dict[str, Any] | None:
            path = workdir / "evals" / f"{step:06d}.json"
            known = distributed.from_first(lambda: read_json(path))
            if known is not None:  # a resumed run does not pay twice
                return known
            answers = evaluate.evaluate(
                answer, state, frozen, task.test, preferences, batch_size=e.batch_size, seed=config.seed, place=place,
                scorer=scorer, stop=stop,
            )  # fmt: skip
            if answers is None:
                return None
            evaluate.need_finite(answers, task)

            def judge() -> dict[str, Any]:
                reference = evaluate.fix_reference(recorded_reference(workdir, task.reference), answers)
                own_task = task._replace(reference=reference)
                out = {"step": step} | evaluate.summarise(answers, preferences, own_task, e.bootstrap)
                out["samples"] = evaluate.sample_answers(answers, preferences, own_task, e.samples)
                write_json(path, out)
                return out

            return distributed.from_first(judge)

        # ------------------------------------------------------------------------------------------ loop
        writer = run_writer.open_writer(config, workdir, start, ("eval/hypervolume", "eval/mean_inner_product"))
        at_exit.callback(writer.close)

        def make(step: int) -> Batch:
            return batch_at(task.train, step, config.batch_size, config.seed, config.data.buckets, batch_placed)

        def step(state: State, batch: Batch, run: profiling.Run):
            return train_step(state, frozen, batch, run)

        def measure(step: int, state: State, stop: Callable[[], bool]) -> dict[str, float] | None:
            evaluation = eval_now(step, state, stop)
            if evaluation is None:
                return None
            run_writer.show_evaluation(writer, evaluation, sources.describe(config), method.label)
            return evaluate.row(evaluation, config.objectives)

        show = {"utility": "utility", **{f"reward/{name}/mean": name for name in config.objectives}}
        show |= {"eval/hypervolume": "hypervolume", "eval/mean_inner_product": "inner product"}
        state, seconds = loop(
            config, workdir, start, state, step, make, measure, checkpoints, writer, label=method.label, show=show,
            functions=task.token_functions, kept=kept,
            known=distributed.from_first(lambda: (workdir / "evals" / f"{start:06d}.json").exists()),
        )  # fmt: skip
        if state is None:
            return None

        # ------------------------------------------------------------------------------------------ front
        with Preemption() as preemption:
            last = eval_now(config.steps, state, preemption.stop_point)
        if last is None:
            logging.warning("stopped in the last evaluation; run the same command to resume")
            return None
        writer.write(config.steps, evaluate.row(last, config.objectives))
        run_writer.show_evaluation(writer, last, sources.describe(config), method.label)

    def seconds_of_all() -> float | None:
        """Of a resumed run only a part is known; a run that was only evaluated again keeps what it knew."""
        earlier = read_json(workdir / "pareto.json") or {}
        known = earlier.get("seconds_training") if earlier.get("step") == start == config.steps else None
        return seconds if start == 0 else known

    results = {
        "task": task.name,
        "method": method.label,
        "seed": config.seed,
        "objectives": list(config.objectives),
        "seconds_training": distributed.from_first(seconds_of_all),
        "compiled": max(program._cache_size() for program in programs),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "environment": profiling.environment(),
        "splits": overlap.of_prompts(task.train, task.test),
        **last,
    }

    def finish() -> dict[str, Any]:
        history = read_history(workdir)
        spent = functools.partial(evaluate.budget, method.cost(config), config, dict(kept["response/length"]))
        out = results | {
            "budget": spent(config.steps),
            # None where the evaluations before training were under other settings of config.eval.
            "before": next(({n: h[n] for n in h if n != "samples"} for h in history if h["step"] == 0), None),
            "history": [
                {"step": h["step"], "hypervolume": h["hypervolume"], "budget": spent(h["step"])} for h in history
            ],
        }
        write_json(workdir / "pareto.json", out)
        return out

    return distributed.from_first(finish)


def begin(
    config: ml_collections.ConfigDict, setup: Setup, task: Task, init: Callable, mesh: Any, checkpoints: Any
) -> tuple[int, Any, Frozen, Any, dict[str, Any]]:
    """A run's state, restored or new, each leaf made where it will live.

    Args:
      config, setup, task: of the run.
      init: (setup, θ, key) → the state at step 0.
      mesh: of devices, set as the current one.
      checkpoints: opened; None begins anew.

    Returns:
      Steps done, the state, what training only reads, the state's shardings, and what was saved beside the state, {} at
      step 0.
    """
    key, policy_key = build.run_keys(config.seed)
    abstract, _ = build.abstract_state(setup, task, init, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    theta, frozen = build.make_policy(setup, task, policy_key, mesh)
    restored = None if checkpoints is None else checkpoint.restore_latest(checkpoints, abstract)
    if restored is None:
        return 0, jax.jit(functools.partial(init, setup), out_shardings=placed)(theta, key), frozen, placed, {}
    start, state, meta = restored
    logging.info("going on from step %d of %d", start, config.steps)
    return start, state, frozen, placed, meta


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
    show: Mapping[str, str],
    functions: Sequence[str] = (),
    kept: series.Series | None = None,
    known: bool = False,
) -> tuple[Any, float]:
    """Steps `start` … `config.steps` - 1, with metrics, checkpoints and evaluations as the configuration spaces them.

    Args:
      config, workdir: of the run.
      start: steps done.
      state: after them; donated.
      step: (state, batch, run) → state, metrics; it calls its programs by `run`, which times them.
      make: step → its batch, on its devices; runs ahead in a thread.
      measure: (step, state, stop) → figures to write and show, every `config.eval.every` steps; None if `stop` said so.
      checkpoints, writer: opened; closed by who opened them.
      label: of the progress bar.
      show: name of each metric that the bar shows, of steps or evaluations, to its name there.
      functions: `Task.token_functions`, for messages.
      kept: metrics of the steps done that go with each checkpoint; those of new steps are added.
      known: the first state was evaluated before, so that `measure` gives that again, whatever config.eval.every says.

    Returns:
      The last state and the seconds taken; None in place of the state if SIGTERM or Ctrl-C came first (it is saved).

    Raises:
      FloatingPointError: a metric is not a finite number; the last checkpoint is from before it, and from just before it
        where a function of tokens gave a reward that is none.
    """
    latest, evaluation, pending, done, began, preempted = {}, {}, None, start, time.perf_counter(), False
    kept = {} if kept is None else kept

    def settle(pending):
        """Fetches and checks a step's metrics, by now computed while the next step runs."""
        nonlocal done, state
        if pending is not None:
            step_number, on_device, measured, evaluation = pending
            values, fault = halt.fault_of({name: float(v) for name, v in jax.device_get(on_device).items()})
            if fault is not None:
                done, state = step_number, halt.release(state)
                if done > start:
                    write_checkpoint()
                raise FloatingPointError(
                    f"step {step_number}: {halt.describe(fault, config.objectives, functions)}. Training stopped; "
                    f"{workdir / 'checkpoints'} keeps the state before this step. Mend the function and run the same "
                    "command to resume."
                )
            values |= watch.times(measured) | profiling.memory()
            halt.need_finite_metrics(values, step_number, config.objectives, workdir / "checkpoints")
            writer.write(step_number, values | evaluation)
            series.add(kept, step_number, values | evaluation)
            latest.update(values)

    def save():
        """Saves the state, once its own step is known to be sound."""
        nonlocal pending
        settle(pending)
        pending = None
        write_checkpoint()

    def write_checkpoint():
        writer.flush()
        meta = {"config": json.loads(config.to_json_best_effort()), series.META: kept}
        checkpoint.save(checkpoints, done, state, meta)
        bar.tell_compilation("checkpoint")
        watch.skip()

    @contextlib.contextmanager
    def saving_on_error():
        """A reward that fails in an evaluation, or between the programs of a step, leaves the state from before it whole."""
        try:
            yield
        except (ValueError, FloatingPointError, distributed.ElsewhereError):  # all processes save, whichever failed
            if done > start and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
                save()
            raise

    with (
        Preemption() as preemption,
        profiling.stopwatch() as watch,
        progress(config.steps, start, label, watch.compiling) as bar,
        prefetch(make, start, config.steps) as next_batch,
        profiling.trace(config.profile_steps, workdir / "profile") as trace,
    ):
        preemption.nothing_to_save = True
        if start < config.steps:
            compiler.explain()
        for step_number in range(start, config.steps):
            trace(step_number)
            evaluation = {}
            if step_number % config.eval.every == 0 or (known and step_number == start):
                settle(pending)  # the evaluation would wait for its step anyway
                pending = None
                with saving_on_error():
                    evaluation = measure(step_number, state, preemption.stop_point)
                if evaluation is None:
                    preempted = True
                    save()
                    break
                latest.update(evaluation)
                bar.tell_compilation("evaluation")
                watch.skip()
            batch, wait = next_batch()
            with jax.profiler.StepTraceAnnotation("step", step_num=step_number), saving_on_error():
                state, metrics = step(state, batch, watch.run)
            settle(pending)  # of the step before: the device is never waited for
            pending = step_number, metrics | {"time/data_wait": wait}, watch.take(), evaluation
            done = step_number + 1
            if preemption.nothing_to_save:
                jax.block_until_ready(metrics)  # its program is compiled, on all processes, and has run
                preemption.nothing_to_save = False
            bar.update(done, **{label: latest[name] for name, label in show.items() if name in latest})
            preempted = preemption.stop_point()
            if done % config.checkpoint.every == 0 or done == config.steps or preempted:
                save()
            if preempted:
                break
    checkpoint.wait(checkpoints)
    seconds = time.perf_counter() - began
    if preempted:
        logging.warning("stopped at step %d of %d; run the same command to resume", done, config.steps)
        return None, seconds
    return state, seconds


def _report(results: dict[str, Any], axes: tuple[str, ...], task: Task, root: Path, draw: bool) -> None:
    """Draws the fronts of all methods into `pareto.png`, by axes of those names, and prints a table."""
    fronts = []
    for name, r in results.items():
        arrays = [np.array(r[field]) for field in ("preferences", "points", "points_low", "points_high")]
        fronts.append(figures.Front(methods.get(name).label, *arrays))
    before = next(iter(results.values()))["before"]
    if before is not None:
        arrays = [np.array(before[field]) for field in ("preferences", "points")]
        fronts.append(figures.Front("before training", *arrays, style="before"))
    truth = evaluate.true_front(task) if task.truth is not None else None
    path, drawn = root / FIGURE, figures.drawn(axes)
    if drawn and draw:
        figures.draw_fronts(path, fronts, axes, truth=truth, title=task.name)
    lines = [*([] if before is None else [dict(before, method="before training")]), *results.values()]
    print("\n" + front_table(lines))
    figure = f"figure: {path}" if drawn else f"no figure: fronts are drawn of 2 or 3 objectives, not of {len(axes)}"
    print(f"\nfronts: {root / 'pareto.json'}\n{figure}")
    if draw or not (root / report.NAME).exists():
        report.write_and_say(root)
