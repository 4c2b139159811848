"""A run's workdir, opened for reading: its configuration, benchmark, newest state and frozen parts, on this machine.

It is what `train.train_and_evaluate` sets up before its loop. Nothing in the workdir is written, moved or removed, so it may
be that of a run still going; and the devices need not be those that the run trained on.

Letters: K objectives.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from meal_jax import build, former_names, methods
from meal_jax import config as defaults
from meal_jax.meal.step import Frozen, Setup, State
from meal_jax.runtime import checkpoint, distributed, identity, sharding
from meal_jax.tasks.task import Task

# What a run writes after config.json, and what runs of several directories write above them.
RESULTS = ("pareto.json", "metrics.jsonl", "evals", "sft.json", "compare.json", "study.json")


class Run(NamedTuple):
    """An opened run.

    Attributes:
      workdir: where it was read.
      config: as run, changes applied.
      method: its functions.
      task, setup: the benchmark, and what the run held fixed.
      step: steps that `state` has done.
      state, frozen: the newest checkpoint, and what training only read.
      mesh: the devices that they lie on; None if the run was not opened by `open_run`.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    method: methods.Method
    task: Task
    setup: Setup
    step: int
    state: State
    frozen: Frozen
    mesh: Any = None


def open_run(workdir: str | os.PathLike, config: ml_collections.ConfigDict | None = None, devices: int = 1) -> Run:
    """Opens the run in `workdir` at its newest checkpoint.

    Args:
      workdir: of one method: the run's own, or the folder in it of a method that was trained beside.
      config: as from `read_config`, which is also the default.
      devices: that the weights are spread over.

    Raises:
      FileNotFoundError: no run there, or no checkpoint yet, or what the run's benchmark reads is not here.
      ValueError: see `read_config`; or another configuration than the run's, see `need_same`; or a run of fine-tuning, which
        has no preference; or this is one of several processes.
    """
    distributed.refuse_several("Reading a run (generate, export)")
    workdir = Path(workdir).expanduser()
    config = read_config(workdir) if config is None else config
    need_same(workdir, config, reading=True)
    if config.stage == "sft":
        raise ValueError(fine_tuned(workdir))
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", keep=None)
    if not checkpoint.steps(checkpoints):  # before the benchmark is loaded, which may take minutes
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint yet: its run saves one every {config.checkpoint.every} steps and at its end "
            "(config.checkpoint.every). Wait for it, or start it again if it has stopped."
        )
    if not 1 <= devices <= jax.device_count():
        raise ValueError(f"devices={devices}: there are {jax.device_count()} here, take 1 to {jax.device_count()}.")
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    method = methods.get(config.method)
    task = build.build_task(config)
    setup = build.build_setup(config, task)

    abstract, _ = build.abstract_state(setup, task, method.init, mesh)
    step, state, _ = checkpoint.restore_latest(checkpoints, abstract)
    _, policy_key = build.run_keys(config.seed)
    _, frozen = build.make_policy(setup, task, policy_key, mesh)
    return Run(workdir, config, method, task, setup, step, state, frozen, mesh)


def fine_tuned(workdir: Path) -> str:
    """What to do with a run of config.stage=sft, where one of alignment is needed."""
    return (
        f"{workdir} is a run of fine-tuning (config.stage=sft), which reads no preference and has no front. Its model is the "
        f"Hugging Face directory {workdir / 'model'}: load it with transformers, or train on it with "
        f"--config.policy.source={workdir / 'model'}."
    )


def read_config(workdir: str | os.PathLike, changes: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The configuration in `workdir`/config.json, as a run has it: typed, with tuples, checked.

    A field that the file lacks, since it was written before there was one, has its default.

    Args:
      workdir: of a run.
      changes: fields that differ here, "data.path=DIRECTORY".

    Raises:
      FileNotFoundError: no config.json.
      ValueError: a field that this version does not have, of another type, or that cannot run; or no change.
    """
    config = recorded_config(workdir)
    for change in changes:
        apply_change(config, change)
    defaults.check(config)
    return config


def recorded_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """The configuration in `workdir`/config.json, or else in its newest checkpoint, typed, not checked.

    Raises:
      FileNotFoundError, ValueError: as `read_config`.
    """
    workdir = Path(workdir).expanduser()
    path = workdir / "config.json"
    values = None if path.exists() else checkpoint.newest_meta(workdir / "checkpoints").get("config")
    if not path.exists() and values is None:
        inside = sorted(str(p.parent) for p in workdir.glob("*/config.json"))
        inside += [str(above) for above in workdir.absolute().parents[:2] if (above / "config.json").exists()]
        hint = f" These are: {', '.join(inside)}." if inside else ""
        raise FileNotFoundError(f"{workdir} is not a run's workdir: it has no config.json.{hint}")
    try:
        values = json.loads(path.read_text()) if values is None else values
        if not isinstance(values, dict):
            raise ValueError(f"it is a {type(values).__name__}")
    except (OSError, ValueError) as error:
        saved = checkpoint.newest_meta(workdir / "checkpoints").get("config")
        advice = (
            "Delete it: the checkpoints hold it too." if saved else "If it is none of a run, give another --workdir."
        )
        raise ValueError(f"{path} is not valid JSON of a configuration ({error}). {advice}") from None
    config = defaults.default()
    absent = _fill(config, former_names.upgrade(values), path)
    if absent:
        logging.info("%s was written before there was %s: defaults are taken.", path, ", ".join(absent))
    return config


def need_same(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict, reading: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Refuses a configuration that is another run's than the one recorded in `workdir`, by `identity.need_same`.

    Args:
      workdir: of a run, or not there yet.
      config: the command's, its method's version.
      reading: nothing is trained, so inputs may have moved and fewer steps do not matter.

    Returns:
      The harmless fields that differ; none where the directory records no run.

    Raises:
      AnotherRunError (a ValueError): names the fields.
      ValueError: config.json cannot be read.
    """
    workdir = Path(workdir).expanduser()
    if not (workdir / "config.json").exists() and not checkpoint.newest_meta(workdir / "checkpoints"):
        results = [name for name in RESULTS if (workdir / name).exists()]
        if results:
            raise identity.AnotherRunError(
                f"{workdir} holds {' and '.join(results)}, and neither a config.json nor a checkpoint says of what run. "
                "Nothing there was changed. Give this run a --workdir of its own."
            )
        return {}
    saved, asked = (json.loads(c.to_json_best_effort()) for c in (recorded_config(workdir), config))
    sections = {method.section[0] for method in methods.METHODS.values() if method.section}
    own = methods.get(config.method).section
    harmless = {*identity.HARMLESS, *(sections - {own[0] if own else None})}  # other methods' sections are not read
    # Its training prompts are those that no test prompt equals
    if config.task in ("toy", "toy_attainable") and not reading:
        harmless |= {f"eval.{name}" for name in config.eval if name != "prompts"}
        harmless -= {"eval"}
    if config.policy.lora_dropout:  # each part draws masks of its own
        harmless = harmless - {"micro"} | {"micro.rollout", "micro.score"}
    if reading:
        return identity.need_same(workdir, saved, asked, harmless | set(identity.MOVED))
    return identity.need_same(workdir, saved, asked, harmless, steps_done(workdir))


def need_no_run(directory: Path, what: str) -> None:
    """Refuses a directory that is a run's own, whose report and lock `what` (of several runs) would take.

    Raises:
      AnotherRunError: a config.json is there.
    """
    if (directory / "config.json").exists():
        raise identity.AnotherRunError(
            f"{directory} holds a run. Nothing there was changed. Give {what} a --workdir of its own."
        )


def steps_done(workdir: Path) -> int:
    """Steps of the newest complete checkpoint in a workdir; 0 without one. Reads names alone."""
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def record_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json`, whole or not at all; process 0 only."""
    text = config.to_json_best_effort(indent=2) + "\n"
    path = workdir / "config.json"
    if not distributed.is_first() or (path.exists() and path.read_text() == text):
        return
    write_text(path, text)


def _fill(config: ml_collections.ConfigDict, values: Mapping[str, Any], path: Path, prefix: str = "") -> list[str]:
    """Writes the values of a JSON object into the configuration, and returns the fields that it lacks."""
    absent = [prefix + name for name in config if name not in values]
    for name, value in values.items():
        if name not in config:
            raise ValueError(
                f"{path} has a field {prefix}{name}, which this version of meal_jax does not know. If it is another "
                "program's, give another --workdir."
            )
        if isinstance(value, Mapping) and isinstance(config[name], ml_collections.ConfigDict):
            absent += _fill(config[name], value, path, f"{prefix}{name}.")
            continue
        try:
            config[name] = _tuples(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {prefix}{name}={value!r} does not fit ({error}).") from None
    return absent


def _tuples(value: Any) -> Any:
    """JSON has no tuples and a configuration no lists: every list was a tuple."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def apply_change(config: ml_collections.ConfigDict, change: str, flag: str = "--set") -> None:
    """Applies "field=value"; a value is a Python literal, or text where the field is one.

    Raises:
      ValueError: it is none, or the configuration has no such field or no such type; names `flag`.
    """
    name, equals, text = change.partition("=")
    *parents, leaf = name.split(".")
    try:
        if not equals:
            raise ValueError("there is no =")
        for parent in parents:
            config = config[parent]
        field = dict(config.items(preserve_field_references=True))[leaf]
        optional = isinstance(field, ml_collections.FieldReference)
        is_text = isinstance(config[leaf], str) or (optional and field.get_type() is str)
        config[leaf] = None if optional and text == "None" else text if is_text else ast.literal_eval(text)
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{flag}={change} is not field=value with a field of the configuration: {error}") from None


def finished(workdir: Path, config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    """What `pareto.json` records, if it is this configuration's last evaluation; else None.

    Raises:
      ValueError: see `need_same`.
    """
    differing = need_same(workdir, config)
    record = read_json(workdir / "pareto.json")
    if record is None or record.get("step", config.steps) != config.steps or identity.measures_otherwise(differing):
        return None
    # Beside evaluations that were set aside, those of another one than pareto.json may have been cut short.
    if (workdir / "evals_1").exists():
        last = read_json(workdir / "evals" / f"{config.steps:06d}.json")
        if last is None or last["points"] != record["points"]:
            return None
    return record


def need_state(workdir: Path, start: int) -> None:
    """Refuses results whose state is gone, where a command starts at step `start`.

    Raises:
      ValueError: says so.
    """
    finished_at = (read_json(workdir / "pareto.json") or {}).get("step", 0)
    if start == 0 < finished_at:
        raise ValueError(
            f"{workdir} holds the results of a run of {finished_at} steps and no checkpoint of it, so it can neither go on "
            "nor be evaluated again. Nothing there was changed. Give this run a --workdir of its own, or delete "
            f"{workdir / 'pareto.json'} to train anew here."
        )


def take_over(workdir: Path, config: ml_collections.ConfigDict, start: int, measured_otherwise: bool) -> None:
    """Makes the workdir this command's, once its state is restored: what was found at states that are gone is deleted,
    evaluations under other settings are set aside, and the configuration is recorded."""
    need_state(workdir, start)
    evals = workdir / "evals"
    if measured_otherwise and evals.is_dir():
        count = next(n for n in itertools.count(1) if not (workdir / f"evals_{n}").exists())
        evals.rename(workdir / f"evals_{count}")
        logging.warning(
            "evaluations under other settings of config.eval are set aside in %s", workdir / f"evals_{count}"
        )
    for path in evals.glob("*.json"):  # they will be made, and judged, again
        if start == 0 or int(path.stem) > start:
            path.unlink()
    record_config(workdir, config)


def need_same_prompts(workdir: Path, evaluation_set: dict[str, Any] | None) -> None:
    """Refuses test prompts that are not those of the workdir's evaluations: one curve would be over different prompts.

    Evaluations that this command replaces, under another number of prompts, count for nothing.

    Raises:
      ValueError: names the evaluation, both counts and both digests.
    """
    if evaluation_set is None:
        return
    for path in sorted((workdir / "evals").glob("*.json")):
        before = (read_json(path) or {}).get("evaluation_set") or evaluation_set
        if before["prompts"] == evaluation_set["prompts"] and before["sha256"] != evaluation_set["sha256"]:
            raise ValueError(
                f"The test prompts have changed since {path}: their SHA-256 was {before['sha256'][:12]}… and is "
                f"{evaluation_set['sha256'][:12]}…, of {evaluation_set['prompts']} prompts each. Nothing there was changed. "
                "Bring back the file of prompts, or give this run a --workdir of its own."
            )


def read_history(workdir: Path) -> list[dict[str, Any]]:
    """The evaluations of a run so far, by step.

    Raises:
      ValueError: one is damaged; names the file.
    """
    out = []
    for path in sorted((workdir / "evals").glob("*.json")):
        if (evaluation := read_json(path)) is None:
            raise ValueError(f"{path} is damaged: delete it and run the same command again, which goes on without it.")
        out.append(evaluation)
    return out


def recorded_reference(workdir: Path, reference: np.ndarray) -> np.ndarray:
    """The hypervolume's reference point [K], its NaN replaced by what this workdir's evaluations were measured from."""
    for path in sorted(workdir.glob("evals*/*.json")):
        if (record := read_json(path)) and "reference" in record:
            return np.where(np.isnan(reference), np.array(record["reference"], np.float64), reference)
    return reference


def read_json(path: Path) -> Any:
    """The value in a file; None where it is not there, or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes whole or not at all: a run killed here leaves no half file to be mistaken for a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def read_preference(text: str, objectives: Sequence[str]) -> np.ndarray:
    """A preference [K] from "0.3,0.7".

    Raises:
      ValueError: not one weight for each objective, negative, or not of sum 1; says what would do.
    """
    k, example = len(objectives), ",".join(f"{1 / len(objectives):.4g}" for _ in objectives)
    needed = (
        f"needed are {k} weights, of {', '.join(objectives)}, that are not negative and sum to 1, such as {example}"
    )
    try:
        w = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise ValueError(f"The preference {text!r} is not numbers with commas between: {needed}.") from None
    if len(w) != k:
        raise ValueError(f"The preference {text!r} has {len(w)} weight(s): {needed}.")
    if not np.all(np.isfinite(w)) or np.any(w < 0):
        raise ValueError(f"The preference {text!r} has a weight that is negative or not a number: {needed}.")
    if abs(w.sum() - 1) > 1e-3:
        would = f" {','.join(f'{v:.4g}' for v in w / w.sum())} would do." if w.sum() > 0 else ""
        raise ValueError(f"The preference {text!r} sums to {w.sum():.4g}: {needed}.{would}")
    return w / w.sum()
