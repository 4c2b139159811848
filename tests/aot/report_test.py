import json
import os
import subprocess
import sys

import pytest

from meal_jax import cost, roofline
from meal_jax.aot import hlo, report, topology
from meal_jax.aot.compiler import Compiled
from tests import xla


def make(network=0.0, total=4e9, problem=""):
    target = topology.parse("v5e:2x2")
    collectives = hlo.Collectives({"all-gather": hlo.Sum(2, 1.0, network)}, at_most=True)
    program = Compiled("update", 1, arguments=total, collectives=collectives, problem=problem)
    work = cost.Cost(flops=4 * 197e12, repeated=197e12)
    row = report.Row(program, work, roofline.bound(work, target.chip, {"data": 4}, network))
    return report.Report(target, {"data": 4, "fsdp": 1, "tensor": 1}, (row,), {"weights": 1e9}, compiled=True)


def test_a_second_of_work_on_four_chips():
    result = make()
    assert result.seconds == pytest.approx(1.0) and result.fits
    assert result.mfu == pytest.approx(0.75)  # a quarter is done twice
    assert result.efficiency == (1.0, 1.0)


def test_the_network_shows_where_it_is_slower_or_not_hidden():
    result = make(network=400e9)  # two seconds of four links
    assert result.seconds == pytest.approx(2.0) and result.rows[0].bound.by == "network"
    assert result.efficiency == (pytest.approx(1 / 3), pytest.approx(0.5))


def test_what_does_not_fit(capsys):
    assert not make(total=17e9).fits and not make(problem="too large").fits
    report.show(make(total=17e9))
    assert "17.00 GB per chip of 16 (by the compiler): does not fit" in capsys.readouterr().out
    report.show(make(total=17e9)._replace(quick=True))
    assert "It may fit without --quick" in capsys.readouterr().out
    report.show(make(problem="[too] large"))
    assert "did not compile: update: [too] large" in capsys.readouterr().out


def command(*arguments, **environment):
    line = [sys.executable, "-m", "meal_jax.aot", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, timeout=600)


def test_a_tiny_run_on_fake_devices(tmp_path):
    """The toy benchmark in the size of a test, compiled for 4 fake devices: every table, and the file."""
    out = tmp_path / "report.json"
    sizes = {"batch_size": 8, "policy.width": 16, "policy.hidden": 32, "sampling.max_new": 3, "meal.candidates": 2}
    fields = [f"--config.{name}={value}" for name, value in (sizes | {"meal.net": False}).items()]
    flags = ["--config=configs/toy.py", "--topology=h100:4", "--quick", f"--out={out}", *fields]
    done = command(*flags, XLA_FLAGS=xla.QUICK)
    assert done.returncode == 0, done.stderr
    for words in (
        "h100:4, 4 chips",
        "Memory per chip by the cost model",
        "Lower bound of the time",
        "all-reduce",
        "fits",
    ):
        assert words in done.stdout
    result = json.loads(out.read_text())
    assert (
        result["fits"] and not result["compiled_for_the_chip"] and result["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    )
    assert result["quick"]
    (program,) = result["programs"]
    assert program["name"] == "step" and program["flops"] > 0 and program["collectives"]["all-reduce"]["count"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v7x:2x2"], "v5e:4x8"),
        (["--topology=h100:2", "--config.batch_size=3"], "config.batch_size=3 must be even"),
        (["--topology=h100:2", "--programs=dance"], "none of this run's: step"),
    ],
)
def test_messages_are_for_people(arguments, words):
    done = command("--config=configs/toy.py", *arguments, XLA_FLAGS="")
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
