"""Every command: quick to refuse, with two lines and not a trace; the former names of fields; stray arguments."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meal_jax import command, config_file, former_names
from meal_jax import config as base

ROOT = Path(__file__).parents[1]
TOY, BENCH, REWARD = (f"--config=configs/{name}.py" for name in ("toy", "bench_smollm2", "reward_model"))
# Command to flags that it would take.
WITH_CONFIG = {
    "main": [TOY, "--workdir=/nowhere"],
    "doctor": [TOY, "--workdir=/nowhere"],
    "compare": [TOY, "--workdir=/nowhere"],
    "aot": [TOY, "--topology=v5e:2x2"],
    "bench": [BENCH],
    "reward_training.heads": ["--config=configs/reward_small.py"],
    "reward_training.model": [REWARD],
    "study": ["--config=configs/study/toy.py", "--workdir=/nowhere"],
}
WITHOUT = {
    "generate": ["--checkpoint=/nowhere", "--prompt=a"],
    "export": ["--checkpoint=/nowhere", "--out=/nowhere"],
    "parity": ["--model=/nowhere"],
    "hf.convert_gguf": ["--source=/nowhere", "--out=/nowhere"],
    "hf.convert_llama2c": ["--model=/nowhere", "--tokenizer=/nowhere", "--out=/nowhere"],
    "answers_figure": ["--run=/nowhere", "--out=/nowhere"],
    "data.prepare": ["--dataset=hh_rlhf"],
    "report": ["/nowhere"],
    "reproduce": ["--figure=5"],
    "serve": ["--checkpoint=/nowhere"],
}
# Runs a module as a command and says on the last line of stderr whether jax was imported on the way.
WATCHED = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    print("jax" in sys.modules, file=sys.stderr)
"""


def start(name, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", WATCHED, f"meal_jax.{name}", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*WITH_CONFIG, *WITHOUT])
def test_help_and_a_stray_argument_do_not_wait_for_jax(name):
    result = start(name, "--help")
    assert "--" in result.stdout and result.stderr.endswith("False\n"), result.stderr
    result = start(name, *(WITH_CONFIG | WITHOUT)[name], "stray")
    assert result.returncode != 0 and "stray" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr and result.stderr.endswith("False\n"), result.stderr


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_a_wrong_field_is_named_whole(name):
    result = start(name, *WITH_CONFIG[name], "--config.optim.taau=1")
    jax, *lines = result.stderr.splitlines()  # the interpreter prints the message last
    assert result.returncode == 1 and jax == "False"
    assert len(lines) <= 2 and lines[0].startswith("error: config.optim.taau is not a field."), result.stderr


def test_a_wrong_field_of_a_section_finds_its_own():
    argv = ["main", TOY, "--config.tau=1"]
    assert command.wrong_field(argv) == "config.tau is not a field. Did you mean config.meal.tau?"
    argv = ["main", "--config", "configs/toy.py:k=3", "--config.meal.taau=1"]
    assert command.wrong_field(argv).endswith("Did you mean config.meal.tau?")
    assert command.wrong_field(["main", TOY, "--config.meal.tau=1"]) is None
    assert "meal_jax/config.py" in command.wrong_field(["main", TOY, "--config.zzzzzz=1"])


def test_a_field_that_may_be_none_takes_none():
    code = """
import sys
from absl import flags
from meal_jax import command

command.define_config()
command.parse(sys.argv)
config = flags.FLAGS.config
print(config.mesh.data, config.mesh.fsdp, config.data.system, config.steps)
"""
    given = ["mesh.data=2", "mesh.fsdp=None", "data.system=None", "steps=7"]
    for fields in (given, [part for field in given for part in field.split("=")]):  # absl takes --name value too
        fields = [part if part in ("2", "None", "7") else f"--config.{part}" for part in fields]
        result = subprocess.run([sys.executable, "-c", code, TOY, *fields], cwd=ROOT, capture_output=True, text=True)
        assert result.stdout == "2 None None 7\n", result.stderr
    result = start("main", TOY, "--workdir=/nowhere", "--config.steps=None")
    assert result.returncode == 1 and "steps" in result.stderr and "Traceback" not in result.stderr


def test_a_former_name_is_refused_with_the_new_one():
    result = command.wrong_field(["main", TOY, "--config.rollout.apart=True"])
    assert result == "config.rollout.apart is not a field. It is called config.rollout.unstack_layers now."


def test_a_configuration_that_is_not_there_is_named():
    result = start("main", "--config=configs/toyy.py", "--workdir=/nowhere")
    assert result.returncode == 1 and "configs/toyy.py" in result.stderr and "Traceback" not in result.stderr


def test_former_names_lead_to_fields_that_are_there():
    known = list(command.leaves(base.default()))
    assert set(former_names.RENAMED.values()) | set(former_names.NUMBERS) <= set(known)
    assert not former_names.RENAMED.keys() & set(known)


def test_a_saved_configuration_is_read_under_its_former_names():
    old = {"beside": ["ric"], "optim": {"final": 0.1, "lr": 1.0}, "ppo": {"divisions": -1}, "mesh": {"slices": 2}}
    new = former_names.upgrade(old)
    assert new == {
        "compare_with": ["ric"],
        "optim": {"final_lr_fraction": 0.1, "lr": 1.0},
        "ppo": {"divisions": None},
        "mesh": {"slices": 2},
    }
    assert "beside" in old and old["ppo"]["divisions"] == -1


def test_a_beta_that_was_a_switch_is_off():
    old = {"method": "soups", "meal": {"beta": 0.05}, "ppo": {"kl": 0.05}}
    assert former_names.upgrade(old)["meal"] == {"beta": 0.0}
    assert former_names.upgrade(old | {"method": "meal"})["meal"] == {"beta": 0.05}


def test_an_error_that_nobody_can_act_on_keeps_its_trace():
    def fail(error):
        raise error

    with pytest.raises(SystemExit, match="error: too long"):
        command.attempt(fail, ValueError("too long"))
    with pytest.raises(ZeroDivisionError):
        command.attempt(fail, ZeroDivisionError())


def test_a_configuration_of_another_command_is_refused_with_that_command():
    for name, kind in (("toy", "run"), ("study/toy", "study"), ("reward_own:a,b", "heads"), ("reward_model", "model")):
        path, _, argument = name.partition(":")
        path = f"{ROOT}/configs/{path}.py" + f":{argument}" * bool(argument)
        config = config_file.read_config_file(path)
        command.need_kind(config, kind, path)
        for other in command.KINDS.keys() - {kind}:
            with pytest.raises(ValueError, match=f"configures .*: python -m {command.KINDS[kind][2]} --config="):
                command.need_kind(config, other, path)


def test_a_buckets_url_is_no_workdir():
    command.need_directory(None)
    command.need_directory("runs/a:b")
    with pytest.raises(ValueError, match=r"gs://bucket/run is a URL.*mount the bucket"):
        command.need_directory("gs://bucket/run")


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_CONFIG)
def test_a_wrong_field_takes_less_than_a_second_and_a_half(name):
    """CPU seconds of the process and its children; an idle core is not needed for that."""
    before, began = os.times(), time.monotonic()
    start(name, *WITH_CONFIG[name], "--config.optim.taau=1")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.5, (spent, time.monotonic() - began)


@pytest.mark.parametrize(
    ("argument", "directory"),
    [
        ("configs/toy.py", "runs/toy"),
        ("configs/toy.py:k=3", "runs/toy_k=3"),
        ("configs/reddit.py:summary,faithful", "runs/reddit_summary_faithful"),
    ],
)
def test_a_workdir_is_named_after_the_configurations_file(argument, directory):
    code = (
        "from absl import flags; from meal_jax import command; command.define_config()\n"
        "flags.DEFINE_string('workdir', None, '')\n"
        f"flags.FLAGS(['x', '--config={argument}']); print(command.workdir())\n"
        "flags.FLAGS.config.stage = 'sft'; print(command.workdir())\n"
        "flags.FLAGS.workdir = 'here'; print(command.workdir())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == [directory, f"{directory}_sft", "here"]
