"""Child processes: as many as asked for, failures named, signals passed on, time estimated."""

import os
import signal
import sys
import threading
import time

import pytest

from meal_jax.study import workers
from meal_jax.study.runs import Run
from meal_jax.study.workers import Outcome


def make(code, variant="v", seed=0, folder=None):
    return Run(variant, seed, folder, ["-c", code], False)


def test_runs_are_trained_in_order_and_a_failed_one_is_named(tmp_path):
    lines = []
    table = [
        make("import os, sys; print(os.environ['NPROC'], sys.argv[1]); print()", "good", 0),
        make("import sys; print('step 3'); sys.exit('error: the reward is not finite')", "bad", 0),
        make("import os; os._exit(3)", "silent", 0),
        make("pass", "good", 1),
    ]
    outcomes = workers.train(table, 1, tmp_path / "logs", lines.append, total=6)
    assert [o.how for o in outcomes] == ["finished", "failed", "failed", "finished"]
    assert outcomes[1].message.startswith("error: the reward is not finite (") and "bad_0.log" in outcomes[1].message
    assert outcomes[2].message.startswith("exit status 3")
    assert (tmp_path / "logs" / "good_0.log").read_text().split() == ["1", "--stopped_status=75"]
    assert [line[:6] for line in lines] == ["[3/6] ", "[4/6] ", "[5/6] ", "[6/6] "]
    assert "bad/0 failed after" in lines[1] and "left" in lines[1] and "left" not in lines[3]


def test_as_many_run_at_a_time_as_asked_for(tmp_path):
    """Each waits for a file that the other writes."""
    code = (
        "import pathlib, sys, time\n"
        "mine, other = (pathlib.Path({folder!r}) / name for name in ({mine!r}, {other!r}))\n"
        "mine.touch()\n"
        "end = time.monotonic() + 30\n"
        "while not other.exists():\n"
        "    time.sleep(0.01)\n"
        "    assert time.monotonic() < end, 'alone'\n"
    )
    table = [
        make(code.format(folder=str(tmp_path), mine=a, other=b), a)
        for a, b in (("first", "second"), ("second", "first"))
    ]
    assert [o.how for o in workers.train(table, 2, tmp_path / "logs", lambda _: None)] == ["finished", "finished"]


def test_a_signal_is_passed_on_and_nothing_more_begins(tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )

    def interrupt():
        end = time.monotonic() + 30
        while not (tmp_path / "ready").exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    sender = threading.Thread(target=interrupt)
    sender.start()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "v_1.log").write_text("of an earlier call")
    outcomes = workers.train([make(code), make("raise SystemExit(1)", seed=1)], 1, tmp_path / "logs", lambda _: None)
    sender.join()
    assert (tmp_path / "logs" / "v_1.log").read_text() == "of an earlier call"
    assert [o.how for o in outcomes] == ["stopped", "stopped"] and outcomes[1].seconds == 0
    assert signal.getsignal(signal.SIGTERM) is former


def test_the_time_left_is_what_runs_of_the_same_variant_took():
    table = [make("", v, s) for s in (0, 1) for v in ("slow", "fast")]
    outcomes = {r.name: Outcome(r, "finished", t) for r, t in zip(table[:2], (100.0, 10.0), strict=True)}
    assert workers.eta(table, outcomes, 1) == 110.0 and workers.eta(table, outcomes, 2) == 55.0
    assert workers.eta(table, {"slow/0": outcomes["slow/0"]}, 1) == 300.0  # unknown ones as the known
    assert workers.eta(table, {r.name: outcomes.get(r.name, Outcome(r, "failed", 1.0)) for r in table}, 1) == 0.0
    assert [workers.clock(s) for s in (5, 600, 3 * 3600 + 290)] == ["5 s", "10 min", "3 h 05 min"]


def test_a_childs_environment_has_one_thread(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    e = workers.environment()
    assert e["OMP_NUM_THREADS"] == e["NPROC"] == "1" and e["XLA_FLAGS"] == "--a=1 --xla_cpu_multi_thread_eigen=false"
    assert e["PATH"] == os.environ["PATH"] and workers.cores() >= 1
    assert sys.executable


@pytest.mark.parametrize(("text", "line"), [("", ""), ("a\n\n b \n\n", "b"), ("x" * 500, "x" * 200)])
def test_the_last_line(tmp_path, text, line):
    (tmp_path / "log").write_text(text)
    assert workers.last_line(tmp_path / "log") == line
