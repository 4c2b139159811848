"""What a run reads and where it writes: weights, data, the workdir. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from meal_jax import methods, sft
from meal_jax.data import hub, own, read_prepared, templates
from meal_jax.doctor.finding import GIB, Finding, fail, ok, warn
from meal_jax.hf import pretrained
from meal_jax.hf.storage import INDEX, SINGLE, read_json, weight_files
from meal_jax.models.lora import Lora
from meal_jax.rewards import formats, linear_heads, sources
from meal_jax.rewards.sources import parse
from meal_jax.runtime import distributed, identity
from meal_jax.saved_run import finished, need_state, steps_done
from meal_jax.tasks import BENCHMARKS, language, stories
from meal_jax.tasks.language import TUNED, need_weights

HUB_SECONDS = 5.0  # that the hub may take to answer
READ_BYTES = 2**28  # of data that is read through


def weights(config: Any) -> Iterator[Finding]:
    """The policy's weights and those of every reward model and judge: local, cached, or on the hub for this token."""
    if config.policy.source:
        yield reach("policy", str(config.policy.source), _decoder)
    elif config.task in templates.PLAIN:
        try:
            need_weights("")
        except FileNotFoundError as error:
            yield fail("policy", f"config.policy.source is empty, and {config.task} has no other model", f"{error}")
    else:
        yield ok("policy", "drawn at random")
    if config.stage == "sft":
        return
    for objective, source in zip(config.objectives, map(sources.parse, config.reward.sources), strict=False):
        if source.kind == "model":
            preset = formats.PRESETS.get(source.value)
            yield reach(f"reward {objective}", source.directory or preset.source, _classifier)
        elif source.kind == "judge" and config.reward.judge:
            yield reach(f"reward {objective}", str(config.reward.judge), _decoder)
        else:
            yield ok(f"reward {objective}", source.kind if source.kind == "heads" else f"{source.kind}:{source.value}")
    own_names = tuple(config.objectives[k] for k in sources.own_objectives(config))
    if config.policy.source and own_names:
        try:
            if language.counts(config):
                stories.need_rewards(own_names)
            else:
                heads = linear_heads.load(config.reward.heads)
                if config.task in templates.PLAIN:  # the rewards of synthetic have any name
                    heads.select(own_names)
        except (FileNotFoundError, ValueError) as error:
            yield fail("heads", f"{error}", "See above.")


def reach(name: str, source: str, read: Callable[[Path], str]) -> Finding:
    """Whether a directory, a GGUF file or a hub id can be read.

    Args:
      name: of the line.
      source: as in `config.policy.source`.
      read: (directory) → what is in it, in words; raises ValueError or FileNotFoundError where it does not do.
    """
    path = Path(pretrained.location(source)).expanduser()
    if path.is_file():
        try:
            return ok(name, f"{source}: {read(pretrained.resolve(path))}")
        except (OSError, ValueError, ModuleNotFoundError) as error:
            return fail(name, f"{error}", "Correct the file, or name another.")
    directory = path if path.is_dir() else None
    if directory is None:
        try:
            need_weights(source)  # tells paths from hub ids
        except FileNotFoundError as error:
            return fail(name, f"there is no {source}", f"{error}")
        directory = cached(source)
    if directory is None:
        return on_hub(name, source)
    try:
        return ok(name, f"{source}: {read(directory)}{'' if path.is_dir() else ', in the cache'}")
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        if path.is_dir():
            return fail(name, f"{error}", "Complete the directory, or name another.")
        return on_hub(name, source, f" (the copy in the cache is not whole: {error})")


def decoder(config: Any) -> Any:
    """The policy's TransformerConfig; None where it has no pretrained weights, or they are not on this machine."""
    p = config.policy
    path = Path(pretrained.location(p.source)).expanduser()
    directory = (path if path.exists() else cached(p.source)) if p.source else None
    lora = Lora(p.lora_rank, p.lora_alpha, p.lora_dropout, p.lora_targets) if p.lora_rank else None
    with contextlib.suppress(ValueError, OSError):  # `weights` has told
        if directory is not None:
            return pretrained.load_config(directory, dtype=p.dtype, param_dtype=p.param_dtype, remat=p.remat, lora=lora)
    return None


def _decoder(directory: Path) -> str:
    c = pretrained.load_config(directory)
    return f"{c.layers} layers of {c.width}, {_files(directory)}"


def _classifier(directory: Path) -> str:
    entries = read_json(directory / "config.json")
    return f"{entries.get('model_type')}, {_files(directory)}"


def _files(directory: Path) -> str:
    files = weight_files(directory)
    if not files:
        raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}.")
    return f"{sum((directory / file).stat().st_size for file in files) / GIB:.2f} GiB of weights"


def cached(repository: str) -> Path | None:
    """The snapshot of a hub id in this machine's cache, None if there is none; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    try:
        entry = try_to_load_from_cache(repository, "config.json")
    except ValueError:  # not of a hub id's form
        return None
    return Path(entry).parent if isinstance(entry, str) else None


def on_hub(name: str, repository: str, also: str = "") -> Finding:
    """Whether the hub would give a repository's files to this token."""
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    token = "with the token that is set" if get_token() else "without a token"
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=HUB_SECONDS)
    except errors.GatedRepoError:
        advice = (
            f"Accept its licence at https://huggingface.co/{repository}, then `hf auth login` or HF_TOKEN with a token of "
            "that account, on every host."
        )
        return fail(name, f"{repository} is gated and refused {token}{also}", advice)
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        reason = type(error).__name__
        return fail(
            name, f"{repository} is not on the hub {token} ({reason}){also}", "Correct the id, or log in to see it."
        )
    except Exception as error:  # of the network, of many types
        reason = " ".join(str(error).split())[:120]
        advice = "Connect this host, or download the model elsewhere and give its directory."
        return fail(name, f"{repository} is not in the cache, and the hub does not answer ({reason}){also}", advice)
    return ok(name, f"{repository}, on the hub {token}; each host will download it{also}")


def data(config: Any) -> Iterator[Finding]:
    """Whether the prompts are there."""
    place = config.data.posts or config.data.path
    if not place:
        yield ok("data", "made by the benchmark")
        return
    if (remote := own.hub_place(place)) and not config.data.posts:
        yield hub_data(config, remote)
        return
    if not config.data.posts and (config.data.format == "own" or config.task == "stories"):
        place = own.split_column(place)[0]
    path = Path(place).expanduser()
    dataset = {"assistant": "hh_rlhf", "reddit": "summarize_from_feedback"}.get(config.task)
    advice = "Correct config.data.posts." if config.data.posts else "Correct config.data.path."
    if config.data.format == "own" and not config.data.posts:
        advice = f"Correct config.data.path. {own.HINT}"
    elif dataset and not config.data.posts:
        advice = (
            f"`python -m meal_jax.data.prepare --dataset={dataset}` writes data/{dataset}; or correct config.data.path."
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        yield fail("data", f"there is nothing at {path}", advice)
    elif path.is_dir():
        parts = sorted(part for part in (path, *path.iterdir()) if read_prepared.directory(part))
        names = sorted(part.name for part in path.iterdir())
        kind = "prepared" if parts else "files"
        yield ok("data", f"{path}, {kind}: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    else:
        yield ok("data", f"{path}, {path.stat().st_size / 2**20:.1f} MiB")


def hub_data(config: Any, place: str) -> Finding:
    """Whether a data set of the hub is in the cache, or the hub would give it. Its column shows when it is read."""
    if config.data.format != "own" and config.task != "stories":
        return fail(
            "data",
            f"config.data.path={config.data.path!r} names a data set on the hub, which config.data.format=published "
            "does not read",
            "Set --config.data.format=own."
            if config.task == "assistant"
            else "Take --config.task=assistant, format own.",
        )
    try:
        if local := hub.cached(place):
            size = sum(file.stat().st_size for file in local) / 2**20
            return ok("data", f"{place}: {len(local)} parquet files, {size:.1f} MiB, in the cache")
        parts = hub.find(place)
    except (FileNotFoundError, ConnectionError) as error:
        return fail("data", f"{error}", "Correct config.data.path, or as above.")
    return ok("data", f"{place}: {len(parts.files)} parquet files on the hub; each host will download them")


def read_rows(config: Any) -> tuple[list[Any], list[Any]] | None:
    """Rows to train on and to evaluate on, before limits of length; None where they are not rows, or too many to read here.

    Raises:
      OSError, ValueError, ImportError: they cannot be read.
    """
    rows = getattr(importlib.import_module(f"meal_jax.tasks.{config.task}"), "read_rows", None)
    size = sum(file.stat().st_size for file in local(config.data.posts or config.data.path))
    return None if rows is None or size > READ_BYTES else tuple(rows(config)[:2])


def local(place: str) -> list[Path]:
    """The files that a path, or a data set that is in the cache, has on this machine."""
    if remote := own.hub_place(place):
        with contextlib.suppress(FileNotFoundError):
            return hub.cached(remote)
        return []
    path = Path(own.split_column(place)[0]).expanduser() if place else None
    if path is None or not path.exists():
        return []
    return [file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


def workdir(config: Any, workdir: str) -> Iterator[Finding]:
    """Whether the workdir can be written to, and has room."""
    if "://" in workdir:
        advice = "Mount the bucket on every host (gcsfuse BUCKET DIRECTORY, or mount-s3) and give the directory."
        yield fail("workdir", f"{workdir} is a URL, and a run writes to a directory", advice)
        return
    path = Path(workdir).expanduser().absolute()
    parent = existing(path)
    try:
        if not parent.is_dir():
            raise NotADirectoryError("it is a file")
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(parent).free
    except OSError as error:
        yield fail("workdir", f"{parent} cannot be written to ({error})", "Give another --workdir, or make room there.")
        return
    try:
        for name, run_config in configurations(config).items():
            need_ready(path if name == config.method else path / name, run_config)
    except (OSError, ValueError) as error:
        yield fail("workdir", f"{error}", "Give this run a --workdir of its own.")
        return
    done = steps_done(path)
    state = f"resumes from step {done}" if done else "a new run"
    room = f"{parent}: {free / GIB:.1f} GiB free; {state}"
    if free < GIB:
        yield fail("workdir", room, "Checkpoints need room: free some, or give another --workdir.")
    elif free < 10 * GIB:
        yield warn(
            "workdir",
            room,
            f"Of adapters a checkpoint is small, of all weights large; {config.checkpoint.keep + 1} are held.",
        )
    else:
        yield ok("workdir", room)


def need_ready(directory: Path, config: Any) -> None:
    """Refuses a directory in which a run of `config` would not start, in the run's own words.

    Raises:
      ValueError: another run's, in use, or with results whose checkpoints are gone.
      OSError: it cannot be read.
    """
    if finished(directory, config) is None:
        need_state(directory, steps_done(directory))
    identity.need_free(directory)


def configurations(config: Any) -> dict[str, Any]:
    """The configuration of each method that a command trains, as its directory records it."""
    if config.stage == "sft":
        return {config.method: sft.configure(config)}
    return {name: methods.configure(name, config) for name in (config.method, *config.compare_with)}


def missing(config: Any) -> list[Finding]:
    """What a run of this configuration needs and this machine has not: policy, rewards, data. Nothing is read through.

    Each has a command in its advice. Where something is missing, what else a newcomer has to know stands below it: the
    fine-tuned start and the devices.
    """
    if config.task not in BENCHMARKS or config.task in ("toy", "toy_attainable", "synthetic"):
        return []  # `build.build_task` tells
    failures = [f for f in (*weights(config), *data(config)) if f.status == "fail"]
    sources = {"policy": (str(config.policy.source), "config.policy.source")}
    for objective, source in zip(config.objectives, map(parse, config.reward.sources), strict=False):
        if source.kind == "model":
            place = source.directory or formats.PRESETS[source.value].source
            sources[f"reward {objective}"] = (place, f"{source.value}@DIRECTORY in config.reward.sources")
        elif source.kind == "judge":
            sources[f"reward {objective}"] = (str(config.reward.judge), "config.reward.judge")
    for i, finding in enumerate(failures):
        source, field = sources.get(finding.name, ("", ""))
        if source.count("/") == 1 and not source.startswith((".", "/", "~", "weights/")):  # a hub id
            command = f"hf download {source} --local-dir weights/{source.rpartition('/')[2]}"
            failures[i] = finding._replace(advice=f"{finding.advice} `{command}`, and name that directory in {field}.")
    return [*failures, *_also(config)] if failures else []


def _also(config: Any) -> Iterator[Finding]:
    """What is not missing for sure, but a newcomer would learn next."""
    directory = Path(config.policy.source).expanduser()
    published = config.task in ("assistant", "reddit") and config.data.format == "published"
    plain = config.stage == "align" and config.data.template == "plain"
    if published and plain and not (directory / TUNED).exists():
        yield warn(
            "SFT start",
            "the published comparisons start from a fine-tuned model, and config.policy.source is a base model",
            "The same command with --config.stage=sft --workdir=runs/sft makes one; then set "
            "--config.policy.source=runs/sft/model.",
        )
    kind = jax.devices()[0]
    if kind.platform == "cpu" and config.policy.dtype == "bfloat16":
        yield warn(
            "devices",
            f"{jax.device_count()} × {kind.device_kind}: a configuration in bfloat16 is made for GPUs or TPUs",
            "Install JAX for them: pip install -e '.[cuda]' or '.[tpu]' (BUILD.md).",
        )


def existing(path: Path) -> Path:
    """The path itself, or the first above it that is there."""
    return next(above for above in (path, *path.parents) if above.exists())


def shared(workdir: str) -> Iterator[Finding]:
    """With several processes: whether all see the same workdir."""
    if jax.process_count() == 1 or "://" in workdir:
        return
    parent = existing(Path(workdir).expanduser().absolute())
    with contextlib.ExitStack() as stack:

        def write() -> str:
            return stack.enter_context(tempfile.NamedTemporaryFile(dir=parent, prefix=".doctor-")).name

        try:
            sees = Path(distributed.from_first(write)).exists()
        except (OSError, RuntimeError):  # it is in process 0's findings
            return
        blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.array(sees)))).tolist()
    if blind:
        advice = "Give a --workdir on a file system that all hosts share: NFS, Filestore, a mounted bucket."
        yield fail("workdir", f"processes {blind} do not see the {parent} of process 0", advice)
    else:
        yield ok("workdir", "the same for all processes")
