"""Fine-tuning before alignment on a tiny model: what it learns from, its loss, resuming, and the model it writes."""

import functools
import json
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax import build, saved_run, sft, train
from meal_jax import config as base
from meal_jax.data import chat as chats
from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.report import content
from meal_jax.rewards import linear_heads
from meal_jax.runtime import checkpoint, sharding
from meal_jax.tasks import assistant


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = train.sharding.make_mesh
    monkeypatch.setattr(train.sharding, "make_mesh", lambda *axes: make(1, 1, 1, jax.devices()[:1]))


@pytest.fixture(scope="module")
def config(chat_model, tmp_path_factory):
    """The assistant's prompts, with answers that are always polite, on the tiny model with adapters."""
    index = tmp_path_factory.mktemp("sft_data")
    for first, folder in zip((0, 60), assistant.FOLDERS, strict=True):
        rows = [
            {"chosen": f"\n\nHuman: {i}\n\nAssistant: yes please", "rejected": f"\n\nHuman: {i}\n\nAssistant: no"}
            for i in range(first, first + 60)
        ]
        (index / folder).mkdir()
        (index / folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = base.default()
    changes = {
        "stage": "sft", "task": "assistant", "objectives": ("harmless", "helpful"), "policy.source": str(chat_model),
        "policy.lora_rank": 2, "policy.lora_dropout": 0.1, "sampling.max_new": 6, "data.path": str(index),
        "data.prompt_length": 48, "batch_size": 4, "eval.prompts": 6, "eval.batch_size": 4, "eval.every": 4, "steps": 6,
        "checkpoint.every": 3, "optim.lr": 3e-2, "optim.warmup": 1, "tensorboard": False,
    }  # fmt: skip
    c.update_from_flattened_dict(changes)
    base.check(c)
    return c


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A whole run: its workdir and what it returned."""
    workdir, make = tmp_path_factory.mktemp("sft_run"), train.sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.sharding, "make_mesh", lambda *axes: make(1, 1, 1, jax.devices()[:1]))
        return workdir, sft.run(config, str(workdir))


@pytest.fixture(scope="module")
def stage(config):
    """Benchmark, setup, θ and the frozen rest, as `sft.run` makes them."""
    task = build.build_task(sft.configure(config))
    setup = build.build_setup(sft.configure(config), task)
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    return task, setup, *build.make_policy(setup, task, jax.random.key(0), mesh)


def leaves(workdir):
    opened = checkpoint.open_checkpoints(workdir / "checkpoints", keep=None)
    folder = workdir / "checkpoints" / str(checkpoint.steps(opened)[-1])
    return json.loads(checkpoint.ocp.checkpointables_metadata(folder).custom_metadata["record"])["leaves"]


@functools.cache
def logits_of(directory):
    """Function of token ids [S], [T] → logits [T, V] of a saved model, one row without padding."""
    c = pretrained.load_config(directory)
    policy, params = Policy(c, Conditioning(kind="none")), pretrained.load_params(directory, c)

    @jax.jit
    def logits(prompt, response):
        apply = functools.partial(policy.apply, {"params": {"transformer": params}})
        prefilled = apply(prompt[None], jnp.ones((1, len(prompt)), bool), method="prefill")
        return apply(apply(prefilled, jnp.zeros((1, 1, 1)), response[None, None], method="respond"), method="unembed")[
            0, 0
        ]

    return lambda prompt, response: np.asarray(logits(np.array(prompt), np.array(response)), np.float64)


def naive_loss(directory, chat, task, rows):
    """− mean log-probability of response tokens, token by token, one unpadded row at a time."""
    logits, losses = logits_of(directory), []
    for tokens, mask, response, real in zip(*rows, strict=True):
        prompt = tokens[mask].tolist() + chats.tail_ids(chat)
        out = np.where(task.forbidden, -np.inf, logits(prompt, response.tolist()))
        for t, token in enumerate(response):
            if real[t]:
                losses.append(np.log(np.exp(out[t] - out[t].max()).sum()) + out[t].max() - out[t][token])
    return np.mean(losses)


def make_rows(config, task, answers=None):
    answers = assistant.answers(config) if answers is None else answers
    return sft.examples(task, task.test, answers, config.sampling.max_new, Counter())


def test_the_loss_counts_response_tokens_alone_and_the_written_model_has_it(config, finished, stage, chat_model):
    (workdir, results), (task, setup, theta, frozen) = finished, stage
    rows = make_rows(config, task)
    first = sft.Examples(*(field[:2] for field in rows))
    uneven = first._replace(response_mask=first.response_mask & (np.arange(6) < np.array([[1], [6]])))
    for source, index, rest in ((chat_model, "before", rows), (workdir / "model", "after", rows)):
        naive = naive_loss(source, task.chat, task, rest)
        np.testing.assert_allclose(results["held_out_loss"][index], naive, rtol=1e-5)
    assert results["held_out_loss"]["after"] < results["held_out_loss"]["before"] - 0.3
    # Responses of different lengths: a mean over tokens, not over rows.
    result = jax.jit(lambda theta, rows: sft.loss_of(setup, theta, frozen, rows))(theta, uneven)
    np.testing.assert_allclose(result, naive_loss(chat_model, task.chat, task, uneven), rtol=1e-5)


def test_what_it_writes(config, finished, chat_model, documented):
    workdir, results = finished
    assert json.loads((workdir / "sft.json").read_text()) == json.loads((workdir / "model" / "sft.json").read_text())
    assert results["compiled"] == 1 and [h["step"] for h in results["history"]] == [0, 4, 6]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(7)) and [r["step"] for r in rows if "loss" in r] == list(range(6))
    assert [r["eval/loss"] for r in rows if "eval/loss" in r] == [h["loss"] for h in results["history"]]
    page = documented(())
    assert set().union(*map(dict.keys, rows)) <= set().union(*page.values())
    assert page["Fine-tuning (`config.stage=sft`)"] == {"loss", "eval/loss"}
    before, after = (chats.make(pretrained.load_tokenizer(index)) for index in (chat_model, workdir / "model"))
    assert chats.describe(before) == chats.describe(after)  # the prompts of alignment and of reward heads are the same
    assert chats.response_ids(before, "no thank you") == chats.response_ids(after, "no thank you")
    a, b = (pretrained.load_params(index, pretrained.load_config(index)) for index in (chat_model, workdir / "model"))
    changed = [
        p for p, x in linear_heads.fingerprint(a).items() if not np.array_equal(x, linear_heads.fingerprint(b)[p])
    ]
    assert sorted(path.split("/")[-2] for path in changed) == ["k", "o", "q", "v"]


def test_other_held_out_prompts_are_refused_since_the_loss_before_is_of_the_old_ones(config, finished):
    workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.eval.prompts = 3
    before = (workdir / "sft.json").read_bytes()
    with pytest.raises(ValueError, match=r"over other held-out prompts.*config\.eval\.prompts"):
        sft.run(other, str(workdir))
    assert (workdir / "sft.json").read_bytes() == before


def test_what_reads_a_run_of_alignment_says_where_the_model_is(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"is a run of fine-tuning .*policy\.source=.*/model"):
        saved_run.open_run(workdir)
    with pytest.raises(FileNotFoundError, match="is a run of fine-tuning"):
        content.find(workdir)


def test_stopped_and_resumed_it_ends_with_the_same_bits(config, finished, tmp_path, monkeypatch):
    real = sft.index_at

    def stop(mask, step, *args):
        if step == 5:
            raise KeyboardInterrupt
        return real(mask, step, *args)

    monkeypatch.setattr(sft, "index_at", stop)
    with pytest.raises(KeyboardInterrupt):
        sft.run(config, str(tmp_path))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(sft, "index_at", real)
    (tmp_path / "metrics.jsonl").unlink()  # what the results say of losses does not depend on it
    results = sft.run(config, str(tmp_path))
    assert leaves(tmp_path) == leaves(finished[0])
    assert results["history"] == finished[1]["history"]


def test_other_rows_than_those_it_began_with_are_refused(config, finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")  # else it is done
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    real = assistant.answers
    monkeypatch.setattr(assistant, "answers", lambda config: {i: ["no"] for i in real(config)})
    with pytest.raises(
        ValueError, match=r"read other inputs .*\n  held-out rows: .* changed .*\n  training rows: .* changed"
    ):
        sft.run(config, str(tmp_path / "run"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_dropout_is_a_steps_own(config, stage):
    task, setup, theta, frozen = stage
    theta = jax.tree.map(lambda x: x + 0.3, theta)
    rows = make_rows(config, task)
    loss = jax.jit(lambda key: sft.loss_of(setup, theta, frozen, rows, key))
    a, b, again = (float(loss(jax.random.key(i))) for i in (0, 1, 0))
    assert a == again != b


def test_responses_that_cannot_be_learnt_are_counted(stage):
    task = stage[0]
    left_out, ids = Counter(), task.test.id.tolist()
    answers = {ids[0]: ["yes", "please " * 9, ""], ids[2]: ["no <|im_start|>", "no"], -1: ["of another prompt"]}
    rows = sft.examples(task, task.test, answers, 6, left_out)
    assert left_out == {"longer than 6 tokens": 1, "empty": 1, "with a special token": 1}
    np.testing.assert_array_equal(rows.tokens, task.test.tokens[[0, 2]])
    for row, real, text in zip(rows.response, rows.response_mask, ("yes", "no"), strict=True):
        assert row[real].tolist() == chats.response_ids(task.chat, text) and row[real][-1] == task.end
        assert not real[real.argmin() :].any()
    exact = len(chats.response_ids(task.chat, "yes"))  # as many as fit, the end included
    assert len(sft.examples(task, task.test, {ids[0]: ["yes"]}, exact, left_out).mask) == 1
    assert not len(sft.examples(task, task.test, {ids[0]: ["yes"]}, exact - 1, left_out).mask)


def test_held_out_loss_does_not_hang_on_batches(config):
    rows = sft.Examples(*(np.arange(5)[:, None],) * 3, np.array([[1, 1], [1, 0], [1, 1], [1, 0], [1, 1]], bool))

    def mean(theta, frozen, b):
        return np.sum(b.response * b.response_mask) / b.response_mask.sum()

    place = train.sharding.batch_sharding(train.sharding.make_mesh())
    values = [sft.held_out(mean, None, None, rows, size, place) for size in (1, 2, 5, 8)]
    np.testing.assert_allclose(values, (0 + 0 + 1 + 2 + 2 + 3 + 4 + 4) / 8, rtol=1e-6)


def test_reward_heads_of_the_model_before_are_refused_after(config, finished, chat_model, tmp_path):
    rng = np.random.default_rng(0)
    params = pretrained.load_params(chat_model, pretrained.load_config(chat_model))
    heads = linear_heads.Heads(
        rng.normal(size=(2, 16)).astype(np.float32), np.zeros(2, np.float32), np.ones(2, np.float32),
        ("harmless", "helpful"), "mean", linear_heads.fingerprint(params), "tiny",
        chats.describe(chats.make(pretrained.load_tokenizer(chat_model))), {},
    )  # fmt: skip
    # So light a tune that its matrices correlate as those of a quantized model do.
    light = jax.tree.map(lambda x: x * (1 + 0.02 * rng.normal(size=x.shape)) if x.ndim > 2 else x, params)
    linear_heads.check_base(heads, light, "here")
    with pytest.raises(ValueError, match=r"another model.*reward_training\.heads"):
        linear_heads.check_base(heads, light, "here", tuned=True)
    linear_heads.check_base(heads, params, "here", tuned=True)

    linear_heads.save(heads, tmp_path / "heads.safetensors")
    aligned = config.copy_and_resolve_references()
    aligned.stage, aligned.reward.heads = "align", str(tmp_path / "heads.safetensors")
    assert build.build_task(aligned).reward_reads_base
    aligned.policy.source = str(finished[0] / "model")
    with pytest.raises(ValueError, match="another model"):
        build.build_task(aligned).weights(None)
    tuned = pretrained.load_params(aligned.policy.source, pretrained.load_config(aligned.policy.source))
    linear_heads.save(heads._replace(base=linear_heads.fingerprint(tuned)), tmp_path / "heads.safetensors")
    assert build.build_task(aligned).weights(None)  # heads fitted on the tuned model


def test_benchmarks_and_data_without_responses_are_said(config, tmp_path):
    toy = base.default()
    toy.stage = "sft"
    with pytest.raises(ValueError, match="the benchmark toy has no responses to learn"):
        sft.run(toy, str(tmp_path / "never"))
    bare = config.copy_and_resolve_references()
    bare.data.format, bare.data.path = "own", str(tmp_path / "prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tea {i}?"}) + "\n" for i in range(60)))
    with pytest.raises(ValueError, match="no answer to learn in .*prompts.jsonl: give rows a `response`"):
        sft.run(bare, str(tmp_path / "never"))
    short = config.copy_and_resolve_references()
    short.sampling.max_new = 1
    with pytest.raises(ValueError, match=r"0 responses to train on and 0 held out.*longer than 1 tokens"):
        sft.run(short, str(tmp_path / "never"))
    assert not (tmp_path / "never").exists()
