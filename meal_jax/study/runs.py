"""A study's table of runs: each an ordinary run of `meal_jax.main` in WORKDIR/VARIANT/SEED."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import ml_collections

from meal_jax import config_file, methods
from meal_jax.config import check
from meal_jax.saved_run import apply_change, finished
from meal_jax.study.plan import Variant

# Fields that the study gives each run, which would hide a change of them.
SET_BY_STUDY = {
    "method": "Variant(…, method=NAME)",
    "compare_with": "a Variant for each method",
    "seed": "config.seed and config.seeds of the study, whose runs have seeds seed, seed + 1 …",
}


class Run(NamedTuple):
    """One run.

    Attributes:
      variant, seed: its place in the table.
      folder: its workdir.
      arguments: of `python`, that train it; what a person would type.
      finished: whether its results are there.
    """

    variant: str
    seed: int
    folder: Path
    arguments: list[str]
    finished: bool

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.seed}"


def table(study: ml_collections.ConfigDict, root: Path) -> list[Run]:
    """All runs, seed by seed, so that a study that is cut short has whole seeds.

    Nothing is trained or written, and every configuration and workdir is checked.

    Raises:
      FileNotFoundError: there is no base configuration.
      ValueError: a variant's configuration cannot run, or a folder holds another run; names the variant.
    """
    configs = {v.name: configuration(study, v) for v in study.variants}
    rows = []
    for seed in range(study.seed, study.seed + study.seeds):
        for variant in study.variants:
            config = configs[variant.name].copy_and_resolve_references()
            config.seed = seed
            folder = root / variant.name / str(seed)
            done = finished(folder, config) is not None
            rows.append(Run(variant.name, seed, folder, arguments(study, variant, seed, folder), done))
    return rows


def configuration(study: ml_collections.ConfigDict, variant: Variant) -> ml_collections.ConfigDict:
    """The configuration that a variant's runs record, but for the seed; errors as of `table`."""
    config = config_file.read_config_file(study.base)
    if config is None:
        raise FileNotFoundError(
            f"config.base={study.base!r} is not a configuration file here: give its path from the current directory."
        )
    try:
        for change in (*study.changes, *variant.changes):
            field = change.partition("=")[0]
            if field in SET_BY_STUDY:
                raise ValueError(f"changes={change}: the study sets {field} itself; use {SET_BY_STUDY[field]} instead.")
            apply_change(config, change, flag="changes")
        config.method, config.compare_with = variant.method, ()
        check(config)
        return methods.configure(variant.method, config)
    except ValueError as error:
        raise ValueError(f"variant {variant.name}: {error}") from None


def arguments(study: ml_collections.ConfigDict, variant: Variant, seed: int, folder: Path) -> list[str]:
    """The command of one run, without the interpreter."""
    fields = (*study.changes, *variant.changes, f"method={variant.method}", "compare_with=()", f"seed={seed}")
    return ["-m", "meal_jax.main", f"--config={study.base}", *(f"--config.{field}" for field in fields),
            f"--workdir={folder}"]  # fmt: skip


def shown(run: Run) -> str:
    """The command of a run as a person would type it."""
    return shlex.join([Path(sys.executable).name.rstrip("0123456789."), *run.arguments])
