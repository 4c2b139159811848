"""Versions and settings."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

from packaging.requirements import Requirement

from meal_jax import methods, track
from meal_jax.config import check
from meal_jax.doctor.finding import Finding, fail, ok, warn
from meal_jax.tasks import BENCHMARKS

SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers")
PLUGINS = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm7-plugin")


def versions() -> Iterator[Finding]:
    """Python and the packages, against what the package asks for."""
    installed = {name: _version(name) for name in (*SHOWN, *PLUGINS)}
    listing = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    wrong = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # run from its sources
        for asked in map(Requirement, importlib.metadata.requires("meal_jax") or ()):
            if asked.marker is None or asked.marker.evaluate({"extra": ""}):
                version = _version(asked.name)
                if version is None or not asked.specifier.contains(version, prereleases=True):
                    wrong.append(f"{asked.name} is {version or 'not installed'}, asked for is {asked.specifier}")
    yield ok("versions", f"Python {sys.version.split()[0]}, {listing}")
    if wrong:
        yield warn("versions", "; ".join(wrong), "Run `pip install -e .` again, with the extra of this machine.")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def settings(config: Any) -> Finding:
    """The configuration's own checks, for every method that it trains."""
    try:
        check(config)
        track.need(config.track)
        if config.task not in BENCHMARKS:
            raise ValueError(f"config.task={config.task!r} is not one of {', '.join(BENCHMARKS)}.")
        if config.stage == "align":
            for name in (config.method, *config.compare_with):
                check(methods.configure(name, config))
    except Exception as error:  # of many types: a user's file of rewards is run for the check
        known = isinstance(error, ValueError | FileNotFoundError)
        advice = "Change the field in the file of --config, or by --config.name=value."
        return fail("config", f"{error}" if known else f"{type(error).__name__}: {error}", advice)
    what = "sft" if config.stage == "sft" else ", ".join(dict.fromkeys((config.method, *config.compare_with)))
    return ok("config", f"{config.task}, {what}, {config.steps} steps of {config.batch_size} prompts")
