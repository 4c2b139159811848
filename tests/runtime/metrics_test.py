import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from meal_jax.runtime import metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def text(self):
        """What was written, without the codes that move the cursor and colour."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def open_terminal(monkeypatch, columns):
    """A terminal in place of standard output."""
    terminal = Terminal()
    monkeypatch.setattr(metrics.sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    return terminal


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Events of every file in the order they were made: length, checksum, message, checksum, and so on."""
    result = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_ctime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            result.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return result


def scalars(workdir):
    """What TensorBoard shows: a session's start at step s forgets what was written before at or after s."""
    display = []
    for event in events(workdir):
        if event.HasField("session_log"):
            display = [(step, tag, value) for step, tag, value in display if step < event.step]
        display += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return display


def test_rows_and_events(tmp_path):
    with metrics.MetricWriter(tmp_path / "new" / "run") as writer:
        writer.write(0, {"loss": jnp.float32(0.5), "reward/harmless": np.float64(1.25)})
        writer.write(jnp.int32(1), {"loss": 2})
        assert rows(tmp_path / "new" / "run")[-1] == {"step": 1, "loss": 2.0}  # there before any flush
    assert rows(tmp_path / "new" / "run")[0] == {"step": 0, "loss": 0.5, "reward/harmless": 1.25}
    assert scalars(tmp_path / "new" / "run") == [(0, "loss", 0.5), (0, "reward/harmless", 1.25), (1, "loss", 2.0)]


def test_flush_puts_events_on_disk(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(0, {"loss": 0.5})
    writer.flush()
    assert scalars(tmp_path) == [(0, "loss", 0.5)]
    writer.close()


def test_without_tensorboard(tmp_path):
    with metrics.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": 0.5})
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(0, {"a": float("nan"), "b": -float("inf"), "c": 1.0})

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 0, "a": None, "b": None, "c": 1.0}
    assert np.isnan(scalars(tmp_path)[0][2])


def test_resume_drops_the_steps_that_are_repeated_and_the_half_line(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        for step in range(6):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with metrics.MetricWriter(tmp_path, start_step=4) as writer:
        for step in range(4, 7):
            writer.write(step, {"loss": 10.0 + step})
    want = [0.0, 1.0, 2.0, 3.0, 14.0, 15.0, 16.0]
    assert [row["loss"] for row in rows(tmp_path)] == want
    assert [row["step"] for row in rows(tmp_path)] == list(range(7))
    assert [(step, value) for step, _, value in scalars(tmp_path)] == list(enumerate(want))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_two_rows_of_a_step_that_an_older_version_wrote_become_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "eval/loss": 1}\n{"step": 0, "loss": 2}\n{"step": 1, "loss": 3}\n'
    )
    with metrics.MetricWriter(tmp_path, start_step=1) as writer:
        writer.write(1, {"loss": 4})
    assert rows(tmp_path) == [{"step": 0, "eval/loss": 1, "loss": 2}, {"step": 1, "loss": 4}]


def test_restart_before_the_first_checkpoint_begins_anew(tmp_path):
    for value in (1.0, 2.0):
        with metrics.MetricWriter(tmp_path) as writer:
            writer.write(0, {"loss": value})
    assert rows(tmp_path) == [{"step": 0, "loss": 2.0}]
    assert scalars(tmp_path) == [(0, "loss", 2.0)]


def test_other_processes_write_and_show_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    with metrics.MetricWriter(tmp_path / "run") as writer:
        writer.write(0, {"loss": 0.5})
        writer.flush()
    with metrics.progress(2, 0, "train") as display:
        display.update(1, loss=0.5)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test turns by hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(metrics.time, "monotonic", lambda: Clock.now)
    return Clock


def test_lines_where_there_is_no_terminal(clock, capsys):
    with metrics.progress(total=100, start=10, description="train [k=3]") as display:
        for step in range(11, 41):
            clock.now += 31.0 if step == 11 else 1.0  # the first step compiles
            display.update(step, loss=1 / 3, phase="a")
    lines = capsys.readouterr().out.splitlines()
    # One when ten seconds have passed since the last, and one at the end.
    assert [re.search(r"(\d+)/100", line).group(1) for line in lines] == ["11", "21", "31", "40"]
    assert lines[0].startswith("train [k=3]  11/100") and "loss 0.3333  phase a" in lines[0]
    # The rate leaves the compilation out; the time passed does not.
    assert "1 steps/s  1:00 elapsed  1:00 left" in lines[-1]


def test_below_one_a_second_it_is_seconds_for_one_of_what_is_counted(clock, capsys):
    with metrics.progress(total=10, start=0, description="pairs read", unit="pair") as display:
        for done in (1, 2, 3):
            clock.now += 40.0
            display.update(done)
    assert capsys.readouterr().out.splitlines()[-1] == "pairs read  3/10  40 s/pair  2:00 elapsed  4:40 left"


def test_compilation_is_said_and_timed_and_never_counted(clock, capsys):
    compiled = 0.0
    with metrics.progress(total=600, start=0, description="train", compiling=lambda: compiled) as shown:
        clock.now += 40.0
        compiled += 30.0  # 10 s of the evaluation were its run
        shown.tell_compilation("evaluation")
        clock.now += 75.0
        compiled += 75.0
        shown.update(1)  # printed, since so much time has passed
        for step in range(2, 12):
            clock.now += 1.0
            shown.update(step)
        clock.now += 21.0
        compiled += 20.0  # another length of prompts
        shown.update(12)
        clock.now += 1.5
        compiled += 0.5  # too little for a line
        shown.update(13)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["train: evaluation compiled in 0:30", "train: step compiled in 1:15"]
    assert lines[2] == "train  1/600  1:55 elapsed"  # no rate, and no time left, from a compilation
    assert lines[3].startswith("train  11/600  1 steps/s  2:05 elapsed  9:49 left")
    assert lines[4] == "train: step compiled in 0:20"
    assert lines[-1] == "train  13/600  1 steps/s  2:28 elapsed  9:47 left" and sum("compiled" in s for s in lines) == 3


def test_names_that_a_person_chose_are_shown_as_they_are(clock, capsys):
    with metrics.progress(total=2, start=0, description="train") as shown:
        shown.update(1, **{"step": 0.5, "self": 1.0, "inner product": 0.25})
    assert capsys.readouterr().out == "train  1/2  0:00 elapsed  step 0.5  self 1  inner product 0.25\n"


def test_last_line_is_not_said_twice_and_survives_an_error(clock, capsys):
    with pytest.raises(RuntimeError), metrics.progress(total=5, start=0, description="train") as display:
        clock.now += 20.0
        display.update(1)
        clock.now += 1.0
        display.update(2)
        raise RuntimeError
    with metrics.progress(total=5, start=0, description="eval") as display:
        clock.now += 20.0
        display.update(5)
    lines = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["train", "1/5"], ["train", "2/5"], ["eval", "5/5"]]


def test_bar_on_a_terminal(monkeypatch):
    terminal = open_terminal(monkeypatch, 160)
    with metrics.progress(total=4, start=1, description="train [k=3]") as display:
        for step in range(2, 5):
            display.update(step, loss=0.25)
    text = terminal.text()
    assert (
        "train [k=3]" in text
        and "4/4" in text
        and "\n  loss 0.25" in text.replace("\r", "").replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "steps/s" in text and "left" in text and "━" in text


def test_numbers_below_the_bar_wrap_and_are_not_cut_off(monkeypatch):
    terminal = open_terminal(monkeypatch, 80)
    with metrics.progress(total=2, start=0, description="static targets") as shown:
        shown.update(1, **{f"objective {k}": k / 8 for k in range(8)})
    text = terminal.text()
    shown = [line.replace("\N{NO-BREAK SPACE}", " ") for line in text.splitlines() if "objective" in line]
    assert all(any(f"objective {k} {k / 8:.4g}" in line for line in shown) for k in range(8)) and "…" not in text
    assert all(line.startswith("  objective") for line in shown[:2])


def test_preemption_sets_a_flag_and_restores_the_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with metrics.Preemption() as preemption:
        assert not preemption.requested and not preemption.stop_point()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested and preemption.stop_point()
        os.kill(os.getpid(), signal.SIGTERM)  # an impatient scheduler changes nothing
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_second_interrupt_raises():
    with metrics.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupt_after_sigterm_is_still_the_first():
    with metrics.Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested


def test_one_of_several_processes_leaves_sigterm_to_the_service_and_passes_interrupts_on(monkeypatch):
    heard, answers = [], iter([False, True])
    monkeypatch.setattr(metrics.jax, "process_count", lambda: 2)
    monkeypatch.setattr(metrics.distributed, "stop_point", lambda: next(answers))

    def service(*_):
        return heard.append("term")

    before = signal.signal(signal.SIGTERM, service)
    try:
        with metrics.Preemption() as preemption:
            assert signal.getsignal(signal.SIGTERM) is service
            os.kill(os.getpid(), signal.SIGINT)
            assert heard == ["term"] and not preemption.stop_point()  # not before the others do
            assert preemption.stop_point()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is service
    finally:
        signal.signal(signal.SIGTERM, before)


def test_preemption_off_the_main_thread_installs_nothing():
    handlers = []

    def enter():
        with metrics.Preemption() as preemption:
            handlers.append((signal.getsignal(signal.SIGTERM), preemption.requested))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [(before, False)]


BUSY = """
import hashlib, threading
from meal_jax.runtime.metrics import Preemption
Preemption.status = 75
with Preemption() as preemption:
    preemption.nothing_to_save = {nothing}
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # C, which no Python handler interrupts, as XLA's compiler
    print("requested", preemption.requested)
"""


@pytest.mark.parametrize(("nothing", "rounds", "status"), [(True, 2**31 - 1, 75), (False, 3_000_000, 0)])
def test_while_there_is_nothing_to_save_a_busy_program_leaves_at_once(nothing, rounds, status):
    code = BUSY.format(nothing=nothing, rounds=rounds)
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "busy\n"
    run.send_signal(signal.SIGTERM)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == status
    assert ("nothing to save" in errors) == nothing and ("requested True" in output) != nothing
