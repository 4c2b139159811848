import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

STATED = ("assistant", "reddit")  # the full-scale configurations
COMMAND = re.compile(r"^ {4}python -m meal_jax\.aot (.*)$", re.MULTILINE)


def stated(name: str) -> list[str]:
    """The arguments of the ahead-of-time command in a configuration's docstring."""
    spec = importlib.util.spec_from_file_location(name, f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (result,) = COMMAND.findall(module.__doc__)
    return result.split()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install -e '.[aot]'")
@pytest.mark.parametrize("name", STATED)
def test_a_full_scale_configuration_fits_the_topology_it_states(name, tmp_path):
    out = tmp_path / "report.json"
    line = [sys.executable, "-m", "meal_jax.aot", *stated(name), f"--out={out}"]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["fits"] and result["compiled_for_the_chip"] and not result["problems"]
    assert {program["name"].partition("/")[0] for program in result["programs"]} == {
        "rollout",
        "score",
        "reward",
        "update",
    }
    assert all(0 < program["total"] <= result["chip"]["memory"] for program in result["programs"])


@pytest.mark.parametrize("name", STATED)
def test_the_command_names_the_configuration_and_a_topology(name):
    arguments = stated(name)
    assert any(part.startswith(f"--config=configs/{name}.py") for part in arguments)
    assert any(part.startswith("--topology=v") for part in arguments)
