"""Writes a benchmark's data set as array_record, from the hub or from files at hand.

    python -m meal_jax.data.prepare --dataset=hh_rlhf
    python -m meal_jax.data.prepare --dataset=summarize_from_feedback --source=DIRECTORY --out=data

It writes OUT/DATASET/CONFIG/VERSION/, a TFDS data set that `tfds.builder_from_directory(…).as_data_source` reads. In that
directory, `checksums.json` holds the SHA-256 of the written files and of their sources. A directory that matches is kept; one
that is damaged or was made from other files is written again. After an interruption the same command resumes with the configs
that are not done. A directory is complete or absent.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from meal_jax import command
from meal_jax.data import files, hh_rlhf, read_prepared
from meal_jax.data import summarize_from_feedback as sff

DATASETS = ("hh_rlhf", "summarize_from_feedback")
# Repository, revision, files of each config. The comparisons are on the hub only as its own conversion to parquet.
HUB = {
    "hh_rlhf": (
        "Anthropic/hh-rlhf",
        "main",
        {subset: (f"{subset}/train.jsonl.gz", f"{subset}/test.jsonl.gz") for subset in hh_rlhf.SUBSETS},
    ),
    "summarize_from_feedback": (
        "openai/summarize_from_feedback",
        "refs/convert/parquet",
        {"comparisons": ("comparisons/train/0000.parquet", "comparisons/validation/0000.parquet")},
    ),
}
CHECKSUMS = "checksums.json"


def prepare(dataset: str, source: str = "", out: str | Path = "data") -> list[Path]:
    """Prepares every config of a data set that the source has.

    Args:
      dataset: one of DATASETS.
      source: for hh_rlhf a directory of the subsets' directories, or one of these; for summarize_from_feedback a file or a
        directory of files; "" fetches from the hub.
      out: directory to write to.

    Returns:
      The prepared directories.

    Raises:
      FileNotFoundError: the source has none of the files.
      ConnectionError: the hub cannot be reached.
      ValueError: a row that cannot be read; names file and line.
    """
    configs = local_sources(dataset, source) if source else dict.fromkeys(HUB[dataset][2])
    return [_prepare_config(dataset, config, sources, Path(out).expanduser()) for config, sources in configs.items()]


def local_sources(dataset: str, source: str) -> dict[str, list[Path]]:
    """The published files of each config that a path holds."""
    path = Path(source).expanduser()
    if dataset == "summarize_from_feedback":
        inner = path / "comparisons"
        return {"comparisons": files.find(inner if inner.is_dir() else path, sff.HINT, sff.SUFFIXES)}
    if (path if path.is_dir() else path.parent).name in hh_rlhf.SUBSETS:
        return {(path if path.is_dir() else path.parent).name: files.find(path, hh_rlhf.HINT)}
    subsets = {name: files.find(path / name, hh_rlhf.HINT) for name in hh_rlhf.SUBSETS if (path / name).is_dir()}
    if not subsets:
        raise FileNotFoundError(
            f"{path} has none of the directories {', '.join(hh_rlhf.SUBSETS)}, and its name is none of them. {hh_rlhf.HINT}"
        )
    return subsets


def hub_sources(dataset: str, config: str) -> list[Path]:
    """The published files of a config in the hub's cache, fetched if needed; an interrupted download resumes.

    Raises:
      ConnectionError: they cannot be fetched; names --source.
    """
    from huggingface_hub import hf_hub_download

    repository, revision, configs = HUB[dataset]
    try:
        return [
            Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision)) for name in configs[config]
        ]
    except Exception as error:  # the hub's client raises its own errors, httpx's, and OSError
        raise ConnectionError(
            f"{', '.join(configs[config])} cannot be fetched from https://huggingface.co/datasets/{repository} ({error}). "
            "Without network, fetch them elsewhere and give their directory by --source=DIRECTORY."
        ) from error


def directory_state(directory: Path, sources: Iterable[Path] | None) -> str:
    """State of a prepared directory: "absent", "whole", "damaged", or "other" (made from other files than `sources`)."""
    if not directory.is_dir():
        return "absent"
    try:
        recorded = json.loads((directory / CHECKSUMS).read_text())
        if {name: files.sha256(directory / name) for name in recorded["files"]} != recorded["files"]:
            return "damaged"
    except (OSError, ValueError, KeyError):  # killed before the checksums were written, or after something was deleted
        return "damaged"
    if sources is not None and recorded["sources"] != _digests(sources):
        return "other"
    return "whole"


def _prepare_config(dataset: str, config: str, sources: list[Path] | None, out: Path) -> Path:
    from meal_jax.data import builders  # imports TFDS

    make = functools.partial(builders.BUILDERS[dataset], config=config, data_dir=out)
    directory = Path(make().data_dir)
    state = directory_state(directory, sources)
    if state == "whole":
        print(f"{directory} is there and matches its checksums: {_counts(directory)}.")
        return directory
    if state != "absent":
        reason = "does not match its checksums" if state == "damaged" else "was made from other files"
        print(f"{directory} {reason}: writing it again.")
    sources = hub_sources(dataset, config) if sources is None else sources
    for leftover in (directory, *directory.parent.glob("incomplete.*")):  # also those of an interrupted run
        shutil.rmtree(leftover, ignore_errors=True)
    # TFDS prints its own lines and bars, which say less than ours.
    builders.tfds.disable_progress_bar()
    with _progress(f"{dataset}/{config}") as tick, contextlib.redirect_stdout(io.StringIO()):
        make(sources=sources, tick=tick).download_and_prepare()
    for empty in (out / "downloads" / "extracted", out / "downloads"):  # TFDS's, which downloads nothing here
        with contextlib.suppress(OSError):
            empty.rmdir()
    written = sorted(file for file in directory.iterdir() if file.name != CHECKSUMS)
    part = directory / (CHECKSUMS + ".part")
    part.write_text(
        json.dumps({"files": {f.name: files.sha256(f) for f in written}, "sources": _digests(sources)}, indent=1) + "\n"
    )
    part.replace(directory / CHECKSUMS)
    print(f"{directory}: {_counts(directory)}.")
    return directory


def _digests(sources: Iterable[Path]) -> dict[str, str]:
    return {"/".join(file.parts[-2:]): files.sha256(file) for file in sources}


def _counts(directory: Path) -> str:
    return ", ".join(f"{rows} rows of {split}" for split, rows in read_prepared.splits(directory).items())


@contextlib.contextmanager
def _progress(label: str):
    """Yields tick(done, total)."""

    class Rate(ProgressColumn):
        def render(self, task):
            return f"{task.speed:,.0f} rows/s" if task.speed else ""

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, redirect_stdout=False) as bar:
        task = bar.add_task(f"reading {label}", total=None)
        yield lambda done, total: bar.update(task, description=f"writing {label}", completed=done, total=total)


def run() -> None:
    prepare(flags.FLAGS.dataset, flags.FLAGS.source, flags.FLAGS.out)


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", None, DATASETS, "Data set to prepare.", required=True)
    flags.DEFINE_string(
        "source", "", "Directory or file that holds the published files; empty fetches them from the hub."
    )
    flags.DEFINE_string("out", "data", "Directory to write to.")
    command.main(run)
