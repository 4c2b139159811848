import json
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from meal_jax import config as base
from meal_jax.doctor import files, prompts
from meal_jax.runtime import identity
from meal_jax.saved_run import record_config


@pytest.fixture
def config(chat_model, tmp_path):
    """Of a benchmark on a local model and local prompts, with a reward model of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}\n")
    c = base.default()
    changes = {
        "task": "assistant", "policy.source": str(chat_model), "data.path": str(tmp_path / "data"),
        "data.prompt_length": 32, "objectives": ("harmless", "mine"),
    }  # fmt: skip
    c.update_from_flattened_dict(changes | {"reward.sources": ("harmless", f"harmless@{chat_model}")})
    return c


def offline(*_, **__):
    raise ConnectionError("no route")


def test_what_is_on_this_machine_is_found_without_the_hub(config, monkeypatch, chat_model):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    config.reward.sources = ("judge:Is it polite?", f"harmless@{chat_model}")
    result = [*files.weights(config), *files.data(config)]
    assert [(f.status, f.name) for f in result] == [
        ("ok", name) for name in ("policy", "reward harmless", "reward mine", "data")
    ]
    assert "layers of" in result[0].detail and "GiB of weights" in result[0].detail
    model = files.decoder(config)
    assert model.width == 16 and model.lora is None
    config.policy.lora_rank = 4
    assert files.decoder(config).lora.rank == 4


def test_what_is_not_there_is_a_failure_with_what_to_do(config, tmp_path, chat_model):
    config.data.path = str(tmp_path / "nothing")
    [data] = files.data(config)
    assert data.status == "fail" and "--dataset=hh_rlhf" in data.advice
    missing = files.reach("policy", "weights/nothing", files._decoder)
    assert missing.status == "fail" and "fetch_smollm2.sh" in missing.advice
    part = tmp_path / "part"
    shutil.copytree(chat_model, part, ignore=shutil.ignore_patterns("*.safetensors*"))
    incomplete = files.reach("policy", str(part), files._decoder)
    assert incomplete.status == "fail" and "safetensors" in incomplete.detail
    (part / "config.json").write_text("{}")
    assert files.reach("policy", str(part), files._decoder).status == "fail"
    config.policy.source = str(part)
    assert files.decoder(config) is None


def test_a_benchmark_without_the_rewards_or_the_model_that_a_run_needs_is_a_failure(config):
    """A newcomer's own objectives, and no config.reward.sources: the run ends in the same words."""
    config.reward.sources, config.objectives = (), ("short", "polite")
    [heads] = [f for f in files.weights(config) if f.status == "fail"]
    assert "There is no reward head for short, polite" in heads.detail
    config.task = "synthetic"  # whose rewards have any name
    assert all(f.status == "ok" for f in files.weights(config))
    config.task = "stories"
    [counts] = [f for f in files.weights(config) if f.status == "fail"]
    assert "The benchmark stories has no reward short, polite; it has dialogue" in counts.detail
    config.policy.source = ""
    [policy] = [f for f in files.weights(config) if f.status == "fail"]
    assert policy.name == "policy" and "fetch_smollm2.sh" in policy.advice


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        (None, "ok", "will download it"),
        (errors.GatedRepoError, "fail", "licence"),
        (errors.RepositoryNotFoundError, "fail", "Correct the id"),
        (ConnectionError, "fail", "Connect this host"),
    ],
)
def test_a_hub_id_is_asked_of_the_hub_unless_it_is_in_the_cache(monkeypatch, chat_model, tmp_path, kind, status, says):
    asked = []

    def answer(url, timeout):
        asked.append((url, timeout))
        if kind is ConnectionError:
            raise kind("no route")
        if kind is not None:
            raise kind("refused", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    result = files.reach("policy", "owner/model", files._decoder)
    assert result.status == status and says in result.detail + result.advice
    assert asked == [("https://huggingface.co/owner/model/resolve/main/config.json", files.HUB_SECONDS)]

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(chat_model / "config.json"))
    assert files.reach("policy", "owner/model", files._decoder).detail.endswith("in the cache") and len(asked) == 1
    shutil.copy(chat_model / "config.json", tmp_path)  # a download that was broken off
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    half = files.reach("policy", "owner/model", files._decoder)
    assert half.status == status and "not whole" in half.detail and len(asked) == 2


def test_the_workdir_is_written_to_and_left_as_it_was(config, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    [new] = files.workdir(config, str(tmp_path / "runs" / "new"))
    assert new.status in ("ok", "warn") and "a new run" in new.detail
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "run" / "checkpoints" / "40").mkdir(parents=True)
    [again] = files.workdir(config, str(tmp_path / "run"))
    assert "resumes from step 40" in again.detail

    [bucket] = files.workdir(config, "gs://bucket/run")
    assert bucket.status == "fail" and "gcsfuse" in bucket.advice
    (tmp_path / "file").touch()
    assert next(files.workdir(config, str(tmp_path / "file" / "run"))).status == "fail"
    assert next(files.workdir(config, "/proc/run")).status == "fail"
    usage = namedtuple("usage", "total used free")
    for free, status in ((2**29, "fail"), (2**32, "warn"), (2**36, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        assert next(files.workdir(config, str(tmp_path))).status == status


def test_a_workdir_in_use_or_without_its_state_is_a_failure_as_in_the_run(tmp_path):
    config = base.default()
    run = tmp_path / "run"
    holder = (
        "import sys; from meal_jax.runtime import identity\nwith identity.hold(sys.argv[1]): print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        [used] = files.workdir(config, str(run))
        process.communicate("\n")
    assert used.status == "fail" and f"is in use by another run (process {process.pid})" in used.detail
    [free] = files.workdir(config, str(run))
    assert free.status in ("ok", "warn")
    with identity.hold(run):  # this process's own lock outlives the question
        assert next(files.workdir(config, str(run))).status in ("ok", "warn")
        assert run.resolve() / identity.LOCK in identity._held

    record_config(run, config)
    (run / "pareto.json").write_text(json.dumps({"step": 5}))
    [lost] = files.workdir(config, str(run))
    assert lost.status == "fail" and "results of a run of 5 steps and no checkpoint" in lost.detail


def test_all_that_is_missing_is_listed_with_a_command_for_each(monkeypatch, tmp_path):
    from configs import reddit

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    config = reddit.get_config("summary,faithful")
    result = files.missing(config)
    assert [f.name for f in result] == ["policy", "reward summary", "reward faithful", "data", "SFT start", "devices"]
    advice = {f.name: f.advice for f in result}
    assert "`hf download meta-llama/Llama-2-7b-hf --local-dir weights/Llama-2-7b-hf`" in advice["policy"]
    assert "summary@DIRECTORY in config.reward.sources" in advice["reward summary"]
    assert "python -m meal_jax.data.prepare --dataset=summarize_from_feedback" in advice["data"]
    assert "--config.stage=sft" in advice["SFT start"] and "[cuda]" in advice["devices"]
    assert files.missing(base.default()) == [] and not list(tmp_path.iterdir())


def test_nothing_is_missing_where_all_is_on_this_machine(config, chat_model):
    config.reward.sources = (f"harmless@{chat_model}",) * 2
    assert files.missing(config) == []


def test_rows_are_counted_and_unreadable_ones_named(config, tmp_path):
    config.data.format = "own"
    rows = tmp_path / "data" / "train.jsonl"
    rows.write_text("".join(f'{{"prompt": "question {i}", "split": "train"}}\n' for i in range(9)))
    (tmp_path / "data" / "test.jsonl").write_text('{"prompt": "Question  3"}\n{"prompt": "another"}\n')
    config.stage, config.batch_size = "sft", 8
    [result] = prompts.prompts(config)
    assert result.status == "ok" and "9 prompts to train on, 2 to evaluate on; in both: 1 by text" in result.detail
    assert result.detail.endswith(
        "8 of 9 rows for training are used (1 also in the evaluation); 2 of 2 rows for evaluation are used"
    )
    rows.write_text("{}\n")
    [result] = prompts.prompts(config)
    assert result.status == "fail" and "train.jsonl:1 must have one of prompt and messages" in result.detail


def test_a_shipped_model_is_found_by_its_name(monkeypatch, config):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    result = files.reach("policy", "stories260k", files._decoder)
    assert result.status == "ok" and "5 layers of 64" in result.detail
    config.policy.source = "stories260k"
    assert files.decoder(config).width == 64
