"""Messages: one format whoever they come from, one line in a file, wrapped on a terminal."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest
from absl import logging as absl_logging

from meal_jax import command, console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def started(monkeypatch):
    """Messages as a command prints them."""
    root = logging.getLogger()
    before, showwarning = list(root.handlers), warnings.showwarning
    console.start()
    yield
    root.handlers[:] = before
    warnings.showwarning = showwarning


@pytest.mark.parametrize("times", [1, 2])
def test_records_of_absl_and_others_and_warnings_look_alike(started, capsys, times):
    for _ in range(times):
        console.start()  # again: no message twice
    absl_logging.warning("a %s", "checkpoint\n  is damaged")
    logging.getLogger("jax._src.xla_bridge").warning("no GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = console.show_warning
        warnings.warn("old\nname", FutureWarning, stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["warning: a checkpoint is damaged", "warning: no GPU"]
    assert lines[2].startswith("warning: old name (FutureWarning, ") and lines[2].endswith(")") and len(lines) == 3


def test_a_records_exception_is_shown_below_it(started, capsys):
    try:
        raise KeyError("missing")
    except KeyError:
        logging.getLogger("orbax").exception("not saved")
    first, *trace = capsys.readouterr().err.splitlines()
    assert first == "error: not saved" and trace[-1] == "KeyError: 'missing'"


def test_messages_wrap_on_a_terminal_alone(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    path = "/a/path/that/is/longer/than/the/terminal/is/wide/and/is/not/broken.jsonl"
    text = (
        f"error: the run cannot start here, and why it cannot takes more than one line\n  policy: {path} is not there"
    )
    assert console.wrap(text, io.StringIO()) == text
    wrapped = console.wrap(text, Terminal()).splitlines()
    assert all(len(line) <= 50 or path in line for line in wrapped)
    assert " ".join(" ".join(wrapped).split()) == " ".join(text.split())
    assert wrapped[1].startswith("  ") and wrapped[1][2] != " "  # a continued line is indented
    assert any(line.startswith("  policy:") for line in wrapped)  # and the message's own lines begin as they did


def test_an_error_is_wrapped_where_a_person_reads_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")

    def fail():
        raise ValueError("much longer than the forty columns that this terminal has")

    with pytest.raises(SystemExit) as piped:
        command.attempt(fail)
    assert "\n" not in str(piped.value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(SystemExit) as shown:
        command.attempt(fail)
    assert max(map(len, str(shown.value).splitlines())) <= 40


def test_banners_are_hidden_unless_the_user_says_otherwise(monkeypatch):
    for name in console.BANNERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    console.hide_banners()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert os.environ["TPU_MIN_LOG_LEVEL"] == console.BANNERS["TPU_MIN_LOG_LEVEL"]


def test_a_commands_banners_are_hidden_before_jax_reads_the_level():
    """jax sets a level of its own, 1, if there is none when it is imported."""
    code = "import os; from meal_jax import command; command._prepare(); import jax; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    environment = {name: value for name, value in os.environ.items() if name not in console.BANNERS}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "2\n"
