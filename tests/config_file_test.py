"""A file of configs/ that is wrong: what is wrong with it, its line, and what to do, in place of a trace."""

import pytest

from meal_jax import config_file
from tests.command_test import WITH_CONFIG, start

FAULTS = {
    "no get_config": ("x = 1", "", "has no function get_config, .*configs/toy.py"),
    "a syntax error": ("def get_config():\n    return (", "", r"line 2: '\(' was never closed"),
    "a missing package": ("\nimport no_such_package", "", "line 2: there is no module no_such_package .*Install"),
    "an exception": ("def get_config():\n    return {}['a']", "", "line 2: KeyError: a$"),
    "an exception on import": ("1 / 0", "", "line 1: ZeroDivisionError: division by zero"),
    "an exit": ("raise SystemExit(3)", "", "line 1: SystemExit: 3"),
    "a refusal without its name": ("def get_config():\n    raise ValueError('odd')", "", "line 2: ValueError: odd$"),
    "an unknown field": (
        "from meal_jax import config\ndef get_config():\n    config.default().stepps = 1", "",
        'line 3: AttributeError: Key "stepps" does not exist .* Did you mean "steps" instead of "stepps"\\?$',
    ),
    "a field of another type": (
        "from meal_jax import config\ndef get_config():\n    config.default().steps = 'many'", "", "line 3: .*'steps'.*many",
    ),
    "nothing returned": ("def get_config():\n    pass", "", "returns NoneType, not a configuration: .*return c"),
    "a dictionary returned": ("def get_config():\n    return {}", "", "returns dict, not a configuration"),
    "no argument taken": ("def get_config():\n    pass", "big", r"line 1: get_config\(\) .* 1 argument.*leave :big out"),
    "an argument needed": ("def get_config(arg):\n    pass", "", r"line 1: get_config\(arg\) .* --config=.*:ARGUMENT"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_configuration_files_own_fault_has_file_and_line(fault, tmp_path):
    text, argument, message = FAULTS[fault]
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=message) as error:
        config_file.read_config_file(f"{path}:{argument}" if argument else str(path))
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 500


def test_a_refusal_that_names_its_file_stays_as_it_is():
    with pytest.raises(ValueError, match=r"^configs/toy.py takes .* not 'nonsense'\.$"):
        config_file.read_config_file("configs/toy.py:nonsense")


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("steps: 1\n")
    with pytest.raises(ValueError, match="mine.yaml is not a Python file"):
        config_file.read_config_file(str(tmp_path / "mine.yaml"))


def test_a_path_relative_to_the_working_directory_has_its_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^mine\.py, line 2: "):
        config_file.read_config_file("mine.py")


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_every_command_gives_the_message_and_no_trace(command, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['a']\n")
    others = [flag for flag in WITH_CONFIG[command] if not flag.startswith("--config=")]
    result = start(command, f"--config={tmp_path / 'mine.py'}", *others)
    jax, *lines = result.stderr.splitlines()  # the interpreter prints the message last
    assert result.returncode == 1 and jax == "False", result.stderr
    assert " ".join(lines).startswith("error: ") and "mine.py, line 2: KeyError: a" in " ".join(lines), result.stderr
