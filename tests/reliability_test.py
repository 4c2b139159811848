"""A few kills of each kind; `python tests/reliability.py --kills=50` makes the figures of docs/reliability.md."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reliability():
    spec = importlib.util.spec_from_file_location("reliability", Path(__file__).with_name("reliability.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(reliability, tmp_path_factory):
    """A directory with a whole run of the toy."""
    home = tmp_path_factory.mktemp("home")
    status, text, _ = reliability.finish(reliability.command("toy", home, home / "whole"), home)
    assert status == 0, text
    return home


@pytest.mark.parametrize("case", ["toy", "text"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(reliability, tmp_path, case):
    assert reliability.kills(case, tmp_path, count=5)["same_bits"]


@pytest.mark.parametrize("which", ["newest", "older", "both"])
def test_damaged_checkpoints(reliability, home, which):
    result = reliability.damaged(home, which)
    assert "None of the checkpoints" in result["said"] or result["same_bits"]


@pytest.mark.parametrize("when", ["save", "evaluation"])
def test_told_to_stop(reliability, home, when):
    assert reliability.terminated(home, when)["same_bits"]


def test_a_full_disk_and_a_sealed_one(reliability, home):
    full, sealed = reliability.full_disk(home), reliability.read_only(home)
    if "skipped" in full:
        pytest.skip(full["skipped"])
    assert full["same_bits"] and "error" in full["said"] and "error" in sealed["said"]


@pytest.mark.parametrize("told", [0, 1])
def test_one_of_two_processes_told_to_stop_while_they_compile(reliability, home, told):
    assert reliability.compiling_in_two(home, told)["seconds"] < 30


def test_one_of_two_processes(reliability, home):
    assert reliability.one_of_two(home)["same_bits"]
