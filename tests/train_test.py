"""Whole runs in miniature: what they write, that they resume to the bit, and how they stop."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from meal_jax import config as base
from meal_jax import train
from meal_jax.generate import answers
from meal_jax.rollout.sampling import Sampling
from meal_jax.runtime import checkpoint
from meal_jax.runtime.metrics import MetricWriter
from meal_jax.saved_run import open_run
from tests import xla

ROOT = Path(__file__).parents[1]
SMALL = {
    "steps": 6, "batch_size": 4, "meal.candidates": 2, "sampling.max_new": 4, "compare_with": (), "policy.width": 16,
    "policy.hidden": 16, "policy.layers": 1, "eval.prompts": 16, "eval.batch_size": 16, "eval.every": 3,
    "eval.divisions": 2, "eval.bootstrap": 20, "checkpoint.every": 2, "mesh.data": 1, "mesh.fsdp": 1,
    "meal.hypergradient": "none",  # half of a step's compilation; tasks/stories_test.py runs the exact one
}  # fmt: skip


def small(**changes):
    config = base.default()
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs take all devices there are; these are too small for eight."""
    monkeypatch.setattr(train.sharding, "make_mesh", lambda *axes: MAKE_MESH(1, 1, 1, jax.devices()[:1]))


MAKE_MESH = train.sharding.make_mesh


def newest(workdir):
    """The newest checkpoint's step, and type and digest of its every leaf by path."""
    opened = checkpoint.open_checkpoints(workdir / "checkpoints", keep=None)
    step = checkpoint.steps(opened)[-1]
    folder = workdir / "checkpoints" / str(step)
    record = json.loads(checkpoint.ocp.checkpointables_metadata(folder).custom_metadata["record"])
    return step, record["leaves"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of Meal, with the static method beside it: its workdir and its results."""
    workdir = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:  # `one_device` is not there yet when a module's fixture is made
        patch.setattr(train.sharding, "make_mesh", lambda *axes: MAKE_MESH(1, 1, 1, jax.devices()[:1]))
        return workdir, train.run(small(compare_with=("static",)), str(workdir))


FOLDERS = {"meal": "", "static": "static"}  # method to its folder in the workdir


@pytest.fixture(params=FOLDERS)
def folder(finished, request):
    """The folder of each method of the finished run."""
    return finished[0] / FOLDERS[request.param]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_has_one_row_and_evaluations_are_in_them(folder):
    rows = rows_of(folder)
    assert [r["step"] for r in rows] == list(range(7))
    assert [r["step"] for r in rows if "utility" in r] == list(range(6))
    assert [r["step"] for r in rows if "eval/hypervolume" in r] == [0, 3, 6]
    for r in (r for r in rows if "eval/hypervolume" in r):
        evaluation = json.loads((folder / "evals" / f"{r['step']:06d}.json").read_text())
        means = np.mean(evaluation["points"], axis=0)
        assert [r[f"eval/reward/{name}/mean"] for name in ("first", "second")] == pytest.approx(means)
        assert [r[f"eval/monotonicity/{name}"] for name in ("first", "second")] == evaluation["monotonicity"]
        assert r["eval/monotonicity"] == pytest.approx(np.mean(evaluation["monotonicity"]))
        assert r["eval/mean_inner_product"] == evaluation["mean_inner_product"]


def test_docs_metrics_lists_exactly_what_is_written(finished, documented):
    written = set().union(*map(dict.keys, rows_of(finished[0])))
    page = documented(("first", "second"))
    conditional = {
        "accept/tau", "time/rollout", "time/score", "time/update", "time/text_rewards", "score/known", "memory/in_use_bytes",
        "memory/peak_bytes",
    }  # fmt: skip
    sections = ("Every method", "Meal, static targets, RAFT", "Evaluation", "Time and memory")
    assert written - {"memory/in_use_bytes", "memory/peak_bytes"} == set().union(*map(page.get, sections)) - conditional
    assert len(set().union(*page.values())) == sum(map(len, page.values()))  # none is listed twice


def test_tensorboard_has_answers_the_front_and_the_configuration(folder):
    values = {}
    for path in (folder / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            values |= {(event.step, value.tag.removesuffix("/text_summary")): value for value in event.summary.value}
            data = data[16 + length :]
    results = json.loads((folder / "pareto.json").read_text())
    for step in (0, 3, 6):
        assert values[step, "eval/front"].image.encoded_image_string.startswith(b"\x89PNG")
        shown = values[step, "samples/prompt_0"].tensor.string_val[0].decode()
    best = results["samples"][0]["answers"][-1]
    assert shown.count("\n") >= 4 and best["response"].removesuffix(">") in shown.replace("&lt;", "<")
    assert values[0, "_hparams_/session_start_info"].metadata.plugin_data.content.count(b"meal.tau") == 1
    assert values[6, "eval/hypervolume"].simple_value == pytest.approx(results["hypervolume"])


def test_a_rows_times_add_up_and_only_the_first_step_compiles(folder):
    for r in (r for r in rows_of(folder) if "utility" in r):
        assert all(0 <= r[f"time/{share}"] < 1 for share in ("data_wait", "idle"))
        assert r["time/step"] * (1 - r["time/idle"]) == pytest.approx(r["time/device"])
        assert (r["time/compile"] > 0) == (r["step"] == 0) and r["memory/host_bytes"] > 2**20


def test_checkpoints_are_kept_and_open_at_the_end(folder):
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["4", "6"]
    opened = open_run(folder)
    label = "static targets" if folder.name == "static" else "Meal"
    assert (opened.step, opened.method.label, int(opened.state.step)) == (6, label, 6)


def test_results_hold_the_front_its_history_and_the_budget(folder):
    written = json.loads((folder / "pareto.json").read_text())
    assert np.shape(written["points"]) == (3, 2) and 0 < written["share_of_true_hypervolume"] < 1
    assert written["compiled"] == 1 and written["budget"]["updates"] == 12
    assert [h["step"] for h in written["history"]] == [0, 3, 6]
    assert len(written["samples"][0]["answers"]) == 3


def test_every_evaluation_names_the_same_prompts(folder):
    written = json.loads((folder / "pareto.json").read_text())
    evaluated = [json.loads(path.read_text())["evaluation_set"] for path in (folder / "evals").iterdir()]
    assert [written["evaluation_set"]] * 3 == evaluated and len(evaluated[0]["sha256"]) == 64


def test_both_methods_are_recorded_and_drawn_in_one_figure(finished):
    workdir, results = finished
    assert (workdir / "pareto.png").stat().st_size > 10_000
    assert "static targets" in (workdir / "report.html").read_text()
    assert set(results) == {"meal", "static"}
    assert json.loads((workdir / "config.json").read_text())["steps"] == 6
    static = json.loads((workdir / "static" / "config.json").read_text())
    assert static["steps"] == 6 and static["meal"]["lam"] == 0


def test_opened_again_it_gives_the_very_answers_that_were_evaluated(finished):
    workdir, results = finished
    opened = open_run(workdir)
    display = results["meal"]["samples"][1]
    prompts, grid = opened.task.test.rows(np.array([1])), np.array([a["preference"] for a in display["answers"]])
    result = answers.answers(opened, prompts, grid, sampling=Sampling(), max_new=4, seed=0)
    assert opened.task.show(prompts.tokens[0][prompts.mask[0]]) == display["prompt"]
    for m, given in enumerate(display["answers"]):
        assert opened.task.show(result.tokens[0, m][result.mask[0, m]]) == given["response"]
        np.testing.assert_allclose(result.scores[0, m], list(given["rewards"].values()), atol=1e-3)


def test_the_same_command_again_changes_no_file_to_the_byte(finished):
    workdir, results = finished

    def files():
        return {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}

    before = files()
    again = train.run(small(compare_with=("static",)), str(workdir))
    assert again["meal"]["points"] == results["meal"]["points"]
    assert again["meal"]["compiled"] == 0
    assert files() == before


COMMAND = [
    sys.executable, "-m", "meal_jax.main", "--config=configs/toy.py", "--config.mesh.data=1",
    *(f"--config.{name}={value}" for name, value in SMALL.items() if name not in ("mesh.data", "compare_with", "steps")),
    "--config.compare_with=()", "--config.steps=150", "--config.checkpoint.every=5", "--config.eval.every=1000",
    "--stopped_status=75",
]  # fmt: skip
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla.QUICK,  # and one device
    "MEAL_CACHE": "0",
}


def start(workdir, *flags):
    environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache")}  # all compile the same
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_checkpoint(process, workdir, after=0, timeout=240):
    """Returns the step of the first checkpoint past `after` that is whole on disk, while the run goes on."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        if max(steps, default=0) > after:
            return max(steps)
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint: {process.communicate()[0][-2000:]}")


def test_killed_or_told_to_stop_and_run_again_it_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole", "--config.checkpoint.every=150")
    assert whole.wait(timeout=300) == 0, whole.communicate()[0][-2000:]
    expected = newest(tmp_path / "whole")
    assert expected[0] == 150 and len(expected[1]) > 20

    killed = start(tmp_path / "killed")
    reached = wait_for_checkpoint(killed, tmp_path / "killed")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "pareto.json").exists()

    resumed = start(tmp_path / "killed")
    wait_for_checkpoint(resumed, tmp_path / "killed", after=reached)
    resumed.send_signal(signal.SIGTERM)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 75 and "run the same command to resume" in output, output[-2000:]
    assert reached < newest(tmp_path / "killed")[0] < 150

    last = start(tmp_path / "killed")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output[-2000:]
    assert newest(tmp_path / "killed") == expected
    points = [json.loads((tmp_path / name / "pareto.json").read_text())["points"] for name in ("whole", "killed")]
    assert points[0] == points[1]
    rows = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(151))


TEXT_REWARDS = """
import jax.numpy as jnp
import numpy as np
from meal_jax.tasks import toy

VALUES, GAMMAS = toy.values(2), toy.gammas()


def second(prompts, responses):
    \"\"\"The toy benchmark's second objective, from what it shows of prompts and responses of at most 4 tokens.\"\"\"
    ids = lambda text: np.array([{"<": toy.BEGIN, ">": toy.END}.get(word) or int(word) for word in text.split()])
    scores = []
    for prompt, response in zip(map(ids, prompts), map(ids, responses)):
        kind, ended = toy.prompt_types(prompt, np), toy.END in response
        served = VALUES[kind, response[response != toy.END], 1].sum()
        scores.append(min(served / np.float32(3), 1) ** GAMMAS[kind] * (1 if ended else 0.5))
    return scores


def first(tokens, mask, prompt_tokens, prompt_mask):
    \"\"\"The toy benchmark's first objective, from the tokens.\"\"\"
    kind = toy.prompt_types(prompt_tokens)
    value = jnp.asarray(VALUES)[kind[:, None, None], tokens, 0] * (mask & (tokens != toy.END))
    share = jnp.minimum(jnp.sum(value, -1) / 3, 1.0) ** jnp.asarray(GAMMAS)[kind][:, None]
    return share * jnp.where(jnp.any(mask & (tokens == toy.END), -1), 1.0, 0.5)
"""


def test_rewards_from_text_train_and_evaluate_as_those_from_tokens_do(finished, tmp_path):
    """The toy's own rewards, written as a user's functions of tokens and of texts: the same run to the bit."""
    code, (own, results) = tmp_path / "mine.py", finished
    code.write_text(TEXT_REWARDS)
    config = small(reward__sources=(f"jax:{code}:first", f"python:{code}:second"))
    text, own_meal = train.run(config, str(tmp_path / "text"))["meal"], results["meal"]
    assert own_meal["compiled"] == text["compiled"] == 1  # of rollout, score and update, one program each
    np.testing.assert_allclose(text["points"], own_meal["points"], rtol=1e-6)
    assert np.std(text["points"]) > 0 and text["seconds_training"] > 0
    assert newest(tmp_path / "text") == newest(own)  # weights, optimizers, reward statistics: the same bits
    rows = [[json.loads(line) for line in (index / "metrics.jsonl").open()] for index in (own, tmp_path / "text")]
    for first, other in zip(*([row for row in run if "utility" in row] for run in rows), strict=True):
        assert other["time/text_rewards"] > 0 and other.keys() - first.keys() == {
            "time/text_rewards", "score/known", "time/rollout", "time/score", "time/update",
        }  # fmt: skip
        # The hypervolume's reference is the benchmark's own for its own rewards alone.
        same = [name for name in first if not name.startswith(("time/", "memory/", "eval/hypervolume"))]
        assert [other[name] for name in same] == pytest.approx([first[name] for name in same], rel=1e-5)


OWN_REWARDS = """
calls = 0

def constant(prompts, responses):
    return [7] * len(responses)

def huge(prompts, responses):
    return [1e6 * (len(r) - 40) for r in responses]

def tiny(prompts, responses):
    return [-19 - 1e-6 * len(r) for r in responses]

def failing(prompts, responses):
    global calls
    calls += 1
    return None if calls > LIMIT else [len(r) for r in responses]
"""


def test_four_rewards_of_ones_own_of_any_scale_one_of_them_constant_run(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(OWN_REWARDS)
    names = ("constant", "huge", "tiny", "huge")
    config = small(
        objectives=("a", "b", "c", "d"), reward__sources=tuple(f"python:{code}:{name}" for name in names), steps=2,
        method="static", eval__divisions=1, tensorboard=False,
    )  # fmt: skip
    result = train.run(config, str(tmp_path / "run"))["static"]
    reference, before = np.array(result["reference"]), result["before"]
    assert np.isfinite(reference).all() and before["reference"] == result["reference"]
    assert result["hypervolume"] > 0 and before["hypervolume"] > 0 and np.shape(result["points"]) == (4, 4)
    assert result["splits"]["same_text"] == 0 and result["splits"]["evaluation"] == 16
    assert not (tmp_path / "run" / "pareto.png").exists()


def test_a_reward_that_fails_is_named_the_state_before_is_saved_and_the_mended_run_resumes(tmp_path):
    """One objective. Calls: one that tries it, one of the first evaluation, one a step."""
    code = tmp_path / "mine.py"
    code.write_text(OWN_REWARDS.replace("LIMIT", "4"))
    config = small(
        objectives=("only",), reward__sources=(f"python:{code}:failing",), steps=4, method="static", eval__every=100,
        checkpoint__every=100, tensorboard=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'only' \(python:.*mine\.py:failing\) returned NoneType None"):
        train.run(config, str(tmp_path / "run"))
    assert newest(tmp_path / "run")[0] == 2
    code.write_text(OWN_REWARDS.replace("LIMIT", "1000"))
    result = train.run(config, str(tmp_path / "run"))["static"]
    assert newest(tmp_path / "run")[0] == 4 and result["hypervolume"] > 0 and np.shape(result["points"]) == (1, 1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "utility" in row] == [0, 1, 2, 3]


def test_a_timed_run_is_the_same_run_and_knows_its_phases_and_a_trace_shows_them(finished, tmp_path):
    train.run(small(method="static", timed=True, profile_steps=(1, 2), eval__every=6), str(tmp_path))
    assert newest(tmp_path) == newest(finished[0] / "static")  # the same bits as of one program
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    for row in (row for row in rows if "utility" in row):
        phases = [row[f"time/{phase}"] for phase in ("rollout", "score", "update")]
        assert min(phases) >= 0 and sum(phases) == pytest.approx(row["time/device"]) and row["time/device"] > 0
    [traced] = (tmp_path / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(traced)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    assert {1, 2} <= {dict(event.stats)["step_num"] for event in events if event.name == "step"} <= {1, 2, 3}
    modules = {dict(event.stats).get("hlo_module") for event in events}
    assert {"jit_rollout", "jit_score", "jit_update"} <= modules


def test_a_reward_that_is_not_a_number_stops_the_run_by_name_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    config = small()
    task = train.build.build_task(config)
    sound, real = task.reward, train.batch_at

    def marked(prompts, step, *args):  # from step 4 on, rows carry negative ids
        batch = real(prompts, step, *args)
        return batch._replace(id=batch.id - 10_000_000 * (step >= 4))

    def faulty(params, batch, responses, hidden=None):
        r = sound(params, batch, responses, hidden)
        return r.at[..., 1].set(jnp.where(batch.id[0] < 0, jnp.nan, r[..., 1]))

    monkeypatch.setattr(train, "batch_at", marked)
    with pytest.raises(FloatingPointError, match=r"step 4: the reward of objective 'second' is not a finite number"):
        train.train_and_evaluate(config, train.methods.get("meal"), task._replace(reward=faulty), tmp_path)
    assert newest(tmp_path)[0] == 4


FAULTY = """

def faulty(tokens, mask, prompt_tokens, prompt_mask):
    marked = jnp.all(prompt_tokens == jnp.array(ROW), -1)[:, None]
    return jnp.where(marked, jnp.inf, first(tokens, mask, prompt_tokens, prompt_mask))
"""


def test_a_function_of_tokens_that_fails_leaves_the_state_just_before_it_and_the_mended_run_ends_as_one_never_stopped(
    finished, tmp_path
):
    """The toy's own first objective as a function of tokens, infinite for one prompt that step 3 is the first to have."""
    code, config = tmp_path / "mine.py", small(steps=6)
    batches = [
        np.asarray(train.batch_at(train.build.build_task(config).train, step, 4, 0).tokens).tolist()
        for step in range(4)
    ]
    [row, *_] = [row for row in batches[3] if all(row not in batch for batch in batches[:3])]
    code.write_text(TEXT_REWARDS + FAULTY.replace("ROW", str(row)))
    config = small(reward__sources=(f"jax:{code}:faulty", "heads"))
    message = (
        r"step 3: the reward of objective 'first' \(jax:.*mine\.py:faulty\) is not a finite number for \d of 8 responses; "
        r"the first is row \d, inf\. .*run the same command to resume"
    )
    with pytest.raises(FloatingPointError, match=message):
        train.run(config, str(tmp_path / "run"))
    assert newest(tmp_path / "run")[0] == 3 and [row["step"] for row in rows_of(tmp_path / "run")] == [0, 1, 2]
    code.write_text(TEXT_REWARDS + FAULTY.replace("ROW", str([-1] * len(row))))
    assert train.run(config, str(tmp_path / "run"))["meal"]["compiled"] == 1
    assert newest(tmp_path / "run") == newest(finished[0])  # and the check on the device changes no bit of a sound step
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [row["step"] for row in rows_of(finished[0])]


@pytest.mark.parametrize(("stopped_at", "saved"), [(3, [3]), (0, [0]), (None, [6])])
def test_told_to_stop_in_an_evaluation_it_saves_the_state_before_it(tmp_path, stopped_at, saved):
    config, opened = small(checkpoint__every=100), checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=1)

    def step(state, batch, run):
        return run("device", jax.jit(lambda n: (n + 1, {"loss": 0.5 * n})), state)

    def measure(step, state, stop):
        assert not stop()
        return None if step == stopped_at else {"eval/loss": 0.0}

    with MetricWriter(tmp_path) as writer:
        state, _ = train.loop(
            config,
            tmp_path,
            0,
            jnp.zeros((), jnp.int32),
            step,
            lambda step: step,
            measure,
            opened,
            writer,
            label="",
            show={"loss": "loss"},
        )
    assert (state is None) == (stopped_at is not None) and checkpoint.steps(opened) == saved
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(saved[0]))
    like = jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert int(checkpoint.restore_latest(opened, like)[1]) == saved[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("only",), "task": "broken"}, "broken"),
        ({"method": "ppo"}, "'ppo' is not one of"),
        ({"batch_size": 3}, "must be even"),
        ({"method": "static", "compare_with": ("ric",), "meal__gap": (0.4, 0.6)}, "'ric' does not draw"),
        ({"batch_size": 4096}, "training prompts are fewer than the 4096"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_compiled(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train.run(small(**changes), str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()


def test_a_batch_that_the_mesh_does_not_divide_is_refused(tmp_path, monkeypatch):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    monkeypatch.setattr(train.sharding, "make_mesh", MAKE_MESH)
    with pytest.raises(ValueError, match="half of config.batch_size"):
        train.run(small(mesh__data=8), str(tmp_path))
    with pytest.raises(ValueError, match="meta_fraction of half of config.batch_size: 4 does not divide over data=8"):
        train.build.mesh_of(small(mesh__data=8, batch_size=16, meal__meta_fraction=0.5))


def test_a_task_whose_rewards_disagree_with_the_objectives_is_refused(monkeypatch):
    from meal_jax.tasks import toy

    real = toy.build
    monkeypatch.setattr(toy, "build", lambda config: real(config)._replace(objectives=("a", "b", "c")))
    with pytest.raises(ValueError, match="names 2 rewards .* gives 3"):
        train.build.build_task(small())


def test_the_command_line_names_a_wrong_field():
    run = subprocess.run(
        [sys.executable, "-m", "meal_jax.main", "--config=configs/toy.py", "--workdir=/nowhere", "--config.meal.taus=1"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode != 0 and "Did you mean config.meal.tau?" in run.stderr and "Traceback" not in run.stderr
