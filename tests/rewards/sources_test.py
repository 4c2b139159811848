"""config.reward.sources: what each form means, how columns are put together, and what is refused before a run begins."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax import build
from meal_jax import config as base
from meal_jax.hf import pretrained
from meal_jax.meal.step import Batch, Frozen
from meal_jax.models.lora import Lora
from meal_jax.rewards import formats, sources
from meal_jax.rewards.text import ModelReward
from meal_jax.rollout.decode import Responses
from meal_jax.runtime import sharding
from meal_jax.tasks import attach_rewards, toy

CODE = """
def words(prompts, responses):
    return [len(r.split()) for r in responses]

def length(tokens, mask, prompt_tokens, prompt_mask):
    return mask.sum(-1) + 100 * prompt_mask.sum(-1)[:, None]

def wrong(tokens, mask, prompt_tokens, prompt_mask):
    return mask * 1.0
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def mesh():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


def configured(*of, **fields):
    config = base.default()
    config.objectives = ("first", "second", "third")[: max(len(of), 2)]
    config.sampling.max_new = 4
    config.update_from_flattened_dict({"reward.sources": of} | {k.replace("__", "."): v for k, v in fields.items()})
    return config


@pytest.mark.parametrize(
    ("string", "source"),
    [
        ("heads", ("heads", "", "")),
        ("harmless", ("model", "harmless", "")),
        ("humor@/some/where@2", ("model", "humor", "/some/where@2")),
        ("python:a/b.py:f", ("python", "a/b.py:f", "")),
        ("jax:package.module:f", ("jax", "package.module:f", "")),
        ("judge:Is it polite: yes or no?", ("judge", "Is it polite: yes or no?", "")),
    ],
)
def test_forms(string, source):
    assert sources.parse(string) == source


@pytest.mark.parametrize(
    ("of", "error", "message"),
    [
        (("heads",), ValueError, r"names 1 rewards .* for the 2 of config\.objectives"),
        (("heads", "harmles"), ValueError, "'harmles' is none of: heads; harmless, .*Did you mean 'harmless'"),
        (("heads", "humor@"), ValueError, "'humor@' is none of"),
        (("heads", "jugde:polite?"), ValueError, "is none of"),
        (("heads", "judge: "), ValueError, "names no question"),
        (("heads", "python:"), ValueError, "names no function"),
        (("heads", "python:/none.py:f"), FileNotFoundError, r"python:/none\.py:f: there is no file /none\.py"),
        (("heads", "jax:meal_jax.testing:nothing"), ValueError, "jax:meal_jax.testing:nothing.*no function nothing"),
        (("heads", "harmless@/none"), FileNotFoundError, "harmless@/none: there is no such directory"),
    ],
)
def test_what_is_wrong_is_said_by_the_configs_own_check(of, error, message):
    config = base.default()
    config.reward.sources = of
    with pytest.raises(error, match=message):
        base.check(config)


def test_no_sources_are_the_benchmarks_own():
    config = configured()
    task = build.build_task(config)
    assert sources.own_objectives(config) == (0, 1) and task.text_rewards == () and task.truth is not None
    assert attach_rewards.scorer(task, None, None) is None and task.reward is toy.reward


def columns(task):
    """The device's rewards of three responses to a prompt of 4 tokens, the first of which serves objective 1."""
    row = next(i for i, real in enumerate(task.test.mask) if real.sum() == 4)
    prompt = Batch(*(jnp.asarray(a[row : row + 1]) for a in task.test[:3]))
    kind = int(toy.prompt_types(task.test.tokens[row], np))
    serving = int(np.flatnonzero(toy.values(2)[kind, :, 1])[0])
    tokens = jnp.array([[[serving, serving, serving, toy.END], [toy.END, 0, 0, 0], [11, 11, toy.END, 0]]])
    mask = jnp.array([[[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]], bool)
    rows = Responses(tokens, mask, jnp.zeros(tokens.shape), jnp.ones((1, 3), bool))
    return np.asarray(task.reward(task.reward_params, prompt, rows, None))[0]


def test_columns_of_the_device_are_mixed_in_order(code):
    own, length = [1.0, 0.0, 0.0], [404.0, 401.0, 403.0]
    task = build.build_task(configured(f"jax:{code}:length", "heads"))
    np.testing.assert_array_equal(columns(task), np.stack([length, own], -1))
    assert not any(task.text_rewards) and attach_rewards.scorer(task, None, None) is None
    task = build.build_task(configured(f"python:{code}:words", "heads"))
    np.testing.assert_array_equal(columns(task), np.array(own)[:, None])
    assert [bool(r) for r in task.text_rewards] == [True, False]
    task = build.build_task(configured(f"python:{code}:words", f"python:{code}:words"))
    assert columns(task).shape == (3, 0)


def test_the_scorer_reads_what_the_benchmark_shows(code, mesh):
    task = build.build_task(configured(f"jax:{code}:length", f"python:{code}:words"))
    scorer = attach_rewards.scorer(task, mesh, None)
    tokens, mask = np.array([[[20, 21, toy.END]]]), np.ones((1, 1, 3), bool)
    prompt = scorer.texts[int(task.train.id[5])]
    assert prompt == toy.show(task.train.tokens[5][task.train.mask[5]]) and prompt.startswith("< ")
    assert scorer.complete([prompt], tokens, mask, np.full((1, 1, 1), 7.0))[0].tolist() == [[[7.0, 3.0]]]


def test_the_truth_and_the_reference_are_of_the_benchmarks_own_rewards(code, caplog):
    unknown, known = (configured("heads", f"python:{code}:words", **k) for k in ({}, {"eval__reference": (0.0, -3.0)}))
    with caplog.at_level(logging.WARNING, logger="absl"):
        task = build.build_task(unknown)
        assert task.truth is None and not caplog.text  # generation and exports build it too, and evaluate nothing
        attach_rewards.warn_of_reference(task, unknown)
        assert "of second is measured from a point that the first evaluation fixes" in caplog.text
        caplog.clear()
        task = build.build_task(known)
        attach_rewards.warn_of_reference(task, known)
        attach_rewards.warn_of_reference(build.build_task(configured()), configured())
    assert task.reference.tolist() == [0.0, -3.0] and not caplog.text
    with pytest.raises(ValueError, match="a point of 1"):
        build.build_task(configured(eval__reference=(0.0,)))


def test_a_wrong_function_of_tokens_is_refused_before_the_run(code):
    with pytest.raises(ValueError, match="objective 'second' returned float32"):
        build.build_task(configured("heads", f"jax:{code}:wrong"))


def test_a_benchmark_without_texts_is_refused_where_a_reward_reads_them(code, monkeypatch):
    real = toy.build

    def bare(config):
        return (t := real(config))._replace(train=t.train._replace(text=()))

    monkeypatch.setattr(toy, "build", bare)
    build.build_task(configured("heads", f"jax:{code}:length"))
    with pytest.raises(ValueError, match=r"training prompts of the benchmark 'toy' have none.*Prompts\.text"):
        build.build_task(configured("heads", f"python:{code}:words"))


def test_an_id_names_one_text(code, monkeypatch):
    real = toy.build

    def collide(config):
        task = real(config)
        name = task.train.id.copy()
        name[7] = name[3]
        return task._replace(train=task.train._replace(id=name))

    monkeypatch.setattr(toy, "build", collide)
    before, after = real(configured()), build.build_task(configured("heads", f"python:{code}:words"))
    assert after.train.id.tolist() == [i for index, i in enumerate(before.train.id.tolist()) if index != 7]
    assert after.train.text[7] == before.train.text[8]


def with_weights(monkeypatch, chat_model, lora):
    """The toy benchmark as if its policy had been loaded from `chat_model`."""
    real, transformer = toy.build, pretrained.load_config(chat_model, lora=lora)
    weights = pretrained.load_params(chat_model, transformer)
    monkeypatch.setattr(toy, "build", lambda config: real(config)._replace(transformer=transformer, weights=weights))
    return weights


@pytest.mark.parametrize("rank", [2, 0])
def test_a_judge_shares_the_policys_frozen_base(rank, monkeypatch, chat_model, mesh):
    weights = with_weights(monkeypatch, chat_model, Lora(rank) if rank else None)
    config = configured("heads", "judge:Is it polite?", policy__source=str(chat_model), policy__lora_rank=rank)
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    assert (setup.base is None) == (rank > 0)  # adapters leave the base as it is; else a copy of it is kept
    held = {"transformer": weights}
    frozen = Frozen(held, None, {}) if rank else Frozen({}, held, {})
    judge = attach_rewards.scorer(task, mesh, frozen).rewards[1]
    assert isinstance(judge, ModelReward)
    for actual, reference in zip(jax.tree.leaves(judge.params), jax.tree.leaves(held), strict=True):
        assert actual is reference


def test_a_judge_of_its_own_and_one_that_is_missing(chat_model, mesh):
    config = configured("heads", "judge:Is it polite?", reward__judge=str(chat_model))
    task = build.build_task(config)
    assert not task.judged_by_base
    scores = attach_rewards.scorer(task, mesh, None).rewards[1](["p", "q"], ["yes", "no"])
    assert scores.shape == (2,) and np.isfinite(scores).all() and scores[0] != scores[1]
    with pytest.raises(ValueError, match=r"judge:Is it polite\? needs a language model.*config\.reward\.judge"):
        build.build_task(configured("heads", "judge:Is it polite?"))


@pytest.fixture(scope="module")
def tokenizer_files(chat_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer.save_pretrained(directory)
    return directory


def torch_model(kind):
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2, num_labels=1, pad_token_id=2,
                initializer_range=0.3,
            )
        ).eval()  # fmt: skip
    return transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(
            vocab_size=300, max_position_embeddings=64, dim=16, hidden_dim=24, n_layers=2, n_heads=2, num_labels=2,
            initializer_range=0.3,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("preset", "kind"), [("harmless", "gpt2"), ("humor", "distilbert")])
def test_a_preset_reads_a_directory_as_torch_does(preset, kind, tokenizer_files, tmp_path, mesh):
    import shutil

    model = torch_model(kind)
    import torch

    shutil.copytree(tokenizer_files, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    task = build.build_task(configured("heads", f"{preset}@{tmp_path / 'model'}", reward__batch_size=2))
    reward = attach_rewards.scorer(task, mesh, None).rewards[1]
    prompts = ["Human: hello \n\nAssistant:", "please", "please", " ".join("please thank you" for _ in range(40))]
    responses = ["thank you yes", "no", "no no no no no no no no no no no no", "yes"]
    actual = reward(prompts, responses)
    tokenizer = pretrained.load_tokenizer(tmp_path / "model")
    for prompt, response, result in zip(prompts, responses, actual, strict=True):
        texts = (response,) if preset == "humor" else (prompt, response)
        ids = tokenizer(*texts, truncation=True, max_length=64, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0, formats.PRESETS[preset].label]
        np.testing.assert_allclose(result, expected, atol=1e-4)
    assert reward.compiled._cache_size() <= 2 and len(set(actual.tolist())) >= 3


def test_a_label_that_the_model_lacks_is_named(tokenizer_files, tmp_path):
    import shutil

    shutil.copytree(tokenizer_files, tmp_path / "model")
    torch_model("gpt2").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has 1 labels, and 'humor' reads label 1"):
        build.build_task(configured("heads", f"humor@{tmp_path / 'model'}"))


def test_a_label_that_means_the_opposite_is_refused(tokenizer_files, tmp_path):
    import shutil

    shutil.copytree(tokenizer_files, tmp_path / "model")
    model = torch_model("distilbert")
    model.config.id2label = {0: "HUMOR", 1: "NO_HUMOR"}
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"humor@.*id2label says 0 'HUMOR', 1 'NO_HUMOR', and 'humor' reads label 1"):
        build.build_task(configured("heads", f"humor@{tmp_path / 'model'}"))


def test_axes_are_named_with_the_reward_model():
    config = base.default()
    assert sources.describe(config) == ("first reward", "second reward")  # the benchmark's own
    config.objectives = ("harmless", "kind", "short", "mine")
    config.reward.sources = ("harmless", "judge:Is it kind?", "python:rewards/short.py:brevity", "model@runs/my_reward")
    assert sources.describe(config) == (
        f"harmless reward ({formats.PRESETS['harmless'].source})", "kind reward (judge: Is it kind?)",
        "short reward (brevity)", "mine reward (my_reward)",
    )  # fmt: skip
