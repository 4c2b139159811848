"""How messages look: one format for our own lines, absl's, jax's and Python's warnings; wrapped only on a terminal.

    warning: the hypervolume of first is measured from a point that the first evaluation fixes …
    error: config.meal.taau is not a field. Did you mean config.meal.tau?

Where the output is a file or a pipe a message stays on one line, so that `grep` shows all of it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
import warnings
from typing import Any, TextIO

from absl import logging as absl_logging

# Start-up notes of the C++ below jax, XLA, gRPC and libtpu, and transformers' note that there is no PyTorch. Errors stay. A
# value that the user set stays, too.
BANNERS = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "GRPC_VERBOSITY": "ERROR",
    "TPU_MIN_LOG_LEVEL": "2",
    "TPU_STDERR_LOG_LEVEL": "2",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
NARROWEST = 40  # columns; a message is not wrapped to less


def hide_banners() -> None:
    """Keeps what is not imported yet from writing notes at its start; errors are still written."""
    for name, value in BANNERS.items():
        os.environ.setdefault(name, value)


def wrap(text: str, stream: TextIO) -> str:
    """The text at the terminal's width, continued lines indented; as it is where `stream` is not a terminal."""
    if not stream.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, NARROWEST)
    return "\n".join(_wrap_line(line, width) for line in text.split("\n"))


def _wrap_line(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    lines = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def say(text: str) -> None:
    """Prints a message of ours."""
    print(wrap(text, sys.stdout), flush=True)


def start() -> None:
    """Has log records and Python's warnings printed in this module's format, on standard error."""
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    if not any(isinstance(handler, Lines) for handler in root.handlers):
        root.addHandler(Lines())
    warnings.showwarning = show_warning


class Lines(logging.Handler):
    """Prints a record as "level: message". It looks standard error up each time, as a progress bar takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _one_line(f"{record.levelname.lower()}: {record.getMessage()}")
            if record.exc_info and record.exc_info[0] is not None:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            print(wrap(text, sys.stderr), file=sys.stderr, flush=True)
        except Exception:  # as logging's own handlers do: a message that cannot be written stops nothing
            self.handleError(record)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Takes the place of `warnings.showwarning`."""
    stream: Any = sys.stderr if file is None else file
    text = _one_line(f"warning: {message} ({category.__name__}, {filename}:{lineno})")
    print(wrap(text, stream), file=stream, flush=True)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
