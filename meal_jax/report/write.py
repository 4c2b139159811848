"""Writes a workdir's report.html."""

from __future__ import annotations

import os
from pathlib import Path

from absl import logging

from meal_jax.report import content, page
from meal_jax.saved_run import write_text

NAME = "report.html"


def write(workdir: str | os.PathLike) -> Path:
    """Writes `workdir`/report.html, whole or not at all; a file that is the same already is left alone.

    Raises:
      FileNotFoundError: no finished run there.
      OSError: the directory cannot be written to.
    """
    workdir = Path(workdir).expanduser()
    text = page.render(content.gather(content.find(workdir), content.read_equal(workdir)))
    path = workdir / NAME
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
    return path


def write_and_say(workdir: str | os.PathLike) -> None:
    """`write`, and prints where; a directory that cannot be written to costs the report alone, with a warning."""
    try:
        print(f"report: {write(workdir)}")
    except OSError as error:
        logging.warning("no report: %s", error)
