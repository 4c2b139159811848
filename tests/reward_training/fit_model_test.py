"""The reward-model trainer on tiny models that learn which word people like; and everything that it says and refuses."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from meal_jax import build, command
from meal_jax import config as base
from meal_jax.classifiers import bert, classifier, gpt2
from meal_jax.data import chat as chats
from meal_jax.models import lora
from meal_jax.reward_training import calibration, card, pairs
from meal_jax.reward_training import fit_model as training
from meal_jax.rewards import formats, sources
from meal_jax.runtime import sharding
from meal_jax.tasks import attach_rewards

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reward_model.py"
# The tokenizer pads with 2, so 5 must not find its way into the directory that torch reads.
SIZES = dict(vocab_size=300, width=16, layers=1, heads=2, hidden=24, positions=48, labels=1, pad=5)


def draw(config, seed=0):
    """Parameters of a classifier, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.uniform(0.5, 1.5, leaf.shape) if path.endswith("scale") else 0.3 * rng.normal(size=leaf.shape)
        for path, leaf in classifier.param_shapes(config).items()
    }
    return jax.tree.map(jnp.float32, traverse_util.unflatten_dict(flat, sep="/"))


@pytest.fixture(scope="session")
def tiny(chat_tokenizer, tmp_path_factory):
    """Directories of a tiny GPT-2 without a head (a language model's) and of a tiny BERT with one of two labels."""
    out = {}
    config = gpt2.Config(family="gpt2", activation="gelu_new", **SIZES)
    out["gpt2"] = tmp_path_factory.mktemp("gpt2")
    classifier.save(out["gpt2"], config, draw(config), settings={"architectures": ["GPT2LMHeadModel"]})
    config = bert.BERT.config(family="bert", **SIZES | {"labels": 2})
    out["bert"] = tmp_path_factory.mktemp("bert")
    classifier.save(out["bert"], config, draw(config))
    for directory in out.values():
        chat_tokenizer.save_pretrained(directory)
    return out


def lines(count):
    """Pairs in which an answer with "yes" is preferred to one with "no"."""
    rng = np.random.default_rng(0)
    words = ["please", "thank", "user", "system"]

    def say(word):
        return " ".join([*rng.permutation(words)[: rng.integers(1, 4)], word])

    return [{"prompt": f"{i}", "chosen": say("yes"), "rejected": say("no")} for i in range(count)]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(120)))
    return path


def configured(source, data, out, **fields):
    spec = importlib.util.spec_from_file_location("reward_model", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.source, c.data.path, c.out = str(source), str(data), str(out)
    c.batch_size, c.epochs, c.lr, c.mesh.data, c.data.prompt = 8, 2, 0.03, 8, "last"
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return c


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def mesh(**sizes):
    return sharding.make_mesh(**sizes)


@pytest.fixture(scope="session")
def gpt2_run(tiny, data, tmp_path_factory):
    """(config, Report) of GPT-2 under adapters, with a new head, longer rows cut."""
    config = configured(tiny["gpt2"], data, tmp_path_factory.mktemp("out") / "gpt2", data__length=40)
    return config, training.run(config)


@pytest.fixture(scope="session")
def bert_run(tiny, data, tmp_path_factory):
    """(config, Report) of BERT, all weights, its own head's second label, pairs of prompt and response."""
    out = tmp_path_factory.mktemp("out") / "bert"
    config = configured(tiny["bert"], data, out, train="all", layout="prompt_pair", label=1, lr=0.01)
    return config, training.run(config)


@pytest.mark.parametrize("name", ["gpt2_run", "bert_run"])
def test_a_preference_is_learned(name, request):
    config, report = request.getfixturevalue(name)
    assert report.fitted + report.tested == 120 and report.tested == report.prompts >= 20
    assert report.before < 0.8 and report.after > 0.9 and report.loss[-1] < 0.3 * report.loss[0]
    assert report.interval[0] < report.after and report.interval_before[0] < report.before < report.interval_before[1]
    assert report.nll < 0.4 and sum(b.pairs for b in report.bins) == report.tested
    out = Path(config.out)
    written = json.loads((out / training.REPORT).read_text())
    assert written["after"] == report.after and written["config"]["source"] == config.source
    assert (out / training.FIGURE).stat().st_size > 5000
    written = (out / "README.md").read_text()
    hashed = "- Held out: 0.3 of the prompts, by a hash of the first human turn; no prompt is in both"
    for fact in (f"**{report.after:.3f}**", f"| held-out pairs | {report.tested}", f"`{config.layout}`", hashed):
        assert fact in written


@pytest.mark.parametrize("name", ["gpt2_run", "bert_run"])
def test_torch_gives_the_same_scores_by_the_cards_own_code(name, request, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    pytest.importorskip("transformers")
    torch.set_num_threads(1)
    config, _ = request.getfixturevalue(name)
    monkeypatch.chdir(config.out)
    code = Path("README.md").read_text().split("```python")[1].split("```")[0]
    rows = [("7", "please yes"), ("8", "thank system no"), ("please x" * 20, "user yes")]  # the last one is cut
    actual = sources_reward(config.out)(*zip(*rows, strict=True))
    for (prompt, response), result in zip(rows, actual, strict=True):
        names = {"prompt": prompt, "response": response}
        exec(code, names)
        np.testing.assert_allclose(result, names["score"], atol=1e-4)
    model, tokenizer, inputs = (names[name] for name in ("model", "tokenizer", "inputs"))
    assert inputs["input_ids"].shape[1] == (config.data.length or 48)
    # Padded texts are read by torch as each alone: its pad id is the tokenizer's.
    texts = ["please yes", "no", "thank system no"]
    with torch.no_grad():
        batch = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    np.testing.assert_allclose(batch, alone, atol=1e-4)


def sources_reward(out, objectives=("first", "second")):
    config = base.default()
    config.objectives, config.sampling.max_new = objectives, 4
    config.reward.sources = ("heads", f"model@{out}")
    base.check(config)
    return attach_rewards.scorer(build.build_task(config), mesh(data=1, devices=jax.devices()[:1]), None).rewards[1]


def test_a_policy_is_given_the_trained_reward(gpt2_run):
    config, report = gpt2_run
    reward = sources_reward(config.out)
    rows = [line for line in lines(120) if chats.position_of(line["prompt"]) >= 0.7]
    scores = [reward([row["prompt"] for row in rows], [row[which] for row in rows]) for which in ("chosen", "rejected")]
    assert np.mean(scores[0] > scores[1]) == report.after
    np.testing.assert_allclose([np.mean(scores), np.std(scores)], [report.mean, report.std], rtol=1e-4)


def test_the_head_alone_leaves_the_rest_as_it_was(tiny, data, tmp_path):
    config = configured(tiny["bert"], data, tmp_path / "out", train="head", epochs=1, lr=0.1, layout="prompt_pair")
    report = training.run(config)
    before, after = (flat(classifier.load(d).params) for d in (tiny["bert"], config.out))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    # All logits move by the bias alike, so the loss says nothing of it.
    assert changed == {"classifier/kernel", "pooler/kernel", "pooler/bias"}
    # The other label's weights are no one's business.
    np.testing.assert_array_equal(before["classifier/kernel"][:, 1], after["classifier/kernel"][:, 1])
    assert report.steps == report.fitted // 8


def test_pairs_are_divided_before_they_are_cut(tiny, tmp_path):
    rows = [{"prompt": f"t{i}", "chosen": "yes", "rejected": "no"} for i in range(50)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [row | {"prompt": f"x{i}"} for i, row in enumerate(rows * 3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configured(tiny["gpt2"], tmp_path, tmp_path / "out", data__pairs=40)
    fitted, held, _ = training.read_encoded(config, encoder(tiny["gpt2"]))
    assert [row.pair.prompt for row in fitted] == [f"x{i}" for i in range(30)]
    assert [row.pair.prompt for row in held] == [f"t{i}" for i in range(10)]
    assert card.held_out(config, fitted + held) == "the pairs whose row or file says test or validation"


def test_a_report_from_before_what_decided_was_recorded_is_read(gpt2_run, tmp_path):
    config = gpt2_run[0].copy_and_resolve_references()
    shutil.copytree(config.out, tmp_path / "old")
    record = json.loads((tmp_path / "old" / training.REPORT).read_text())
    assert record.pop("held_out")
    (tmp_path / "old" / training.REPORT).write_text(json.dumps(record))
    config.out = str(tmp_path / "old")
    assert training.finished(config) == gpt2_run[1]._replace(held_out="")


def test_folded_adapters_give_the_adapters_logits_and_a_length_is_compiled_once(tiny, data, tmp_path, monkeypatch):
    config = configured(tiny["gpt2"], data, tmp_path, mesh__data=4, mesh__fsdp=2)
    index = mesh(data=4, fsdp=2)
    model = training.load(config, index)
    fitted, held, _ = training.read_encoded(config, encoder(tiny["gpt2"]))
    steps, make = [], training.make_step
    monkeypatch.setattr(training, "make_step", lambda *args: steps.append(make(*args)) or steps[-1])
    start = flat(model.params)
    params, losses = training.fit(model, fitted, config, 48, index)
    trained = flat(params)
    changed = {path for path in start if not np.array_equal(start[path], trained[path])}
    actual = {"classifier/kernel", *(f"layers/attention/{layer}/lora_{f}" for layer in ("qkv", "o") for f in "ab")}
    assert changed == actual and len(losses) == 2
    assert set(pairs.lengths_of(fitted, 48)) == {32} and steps[0]._cache_size() == 1
    tokens, mask, types = (a[:, 0] for a in pairs.collate(held[:8], 32, model.pad))
    plain = classifier.make_classifier(training.without_adapters(model.config), None)
    apply = jax.jit(plain.apply)
    with_adapters = jax.jit(model.apply)(params, tokens, mask, types)
    folded, untrained = (
        apply(lora.fold(tree, model.config.lora), tokens, mask, types)
        for tree in (params, traverse_util.unflatten_dict(start, sep="/"))
    )
    np.testing.assert_allclose(folded, with_adapters, atol=1e-4)
    assert np.abs(with_adapters - untrained).max() > 0.1


def encoder(directory, longest=48):
    from meal_jax.hf import pretrained

    tokenizer = pretrained.load_tokenizer(directory)
    return lambda prompt, response: formats.plain(tokenizer, prompt, response, longest)


def test_the_loss_and_its_gradient_by_hand():
    """With scores linear in a token's row, d loss = −σ(−margin) (row(chosen) − row(rejected)) / B."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)), jnp.float32)

    def apply(p, tokens, mask, types):
        return jnp.sum(p["w"][tokens] * mask[..., None], axis=1) + p["shift"]

    tokens = jnp.array([[[1, 2], [3, 4]], [[5, 6], [7, 0]]])
    mask = jnp.array([[[1, 1], [1, 1]], [[1, 1], [1, 0]]], bool)
    frozen = {"shift": jnp.array([3.0, -1.0])}
    rows = (tokens, mask, np.zeros((2, 2, 2), np.int32))
    grad = jax.jit(jax.value_and_grad(lambda p: training.loss_of(p, frozen, apply, 1, *rows), has_aux=True))
    (loss, right), gradient = grad({"w": table})
    w = np.asarray(table[:, 1], np.float64)
    margin = np.array([w[1] + w[2] - w[3] - w[4], w[5] + w[6] - w[7]])
    np.testing.assert_allclose(loss, np.mean(np.log(1 + np.exp(-margin))), rtol=1e-5)
    assert right == np.mean(margin > 0)
    pull = -1 / (1 + np.exp(margin)) / 2
    expected = np.zeros((9, 2))
    expected[[1, 2, 3, 4], 1] = pull[0] * np.array([1, 1, -1, -1])
    expected[[5, 6, 7], 1] = pull[1] * np.array([1, 1, -1])
    np.testing.assert_allclose(gradient["w"], expected, atol=1e-6)


def test_the_temperature_is_found_and_held_out():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000) * 2
    margins = 5 * np.abs(truth) * np.where(rng.uniform(size=4000) < 1 / (1 + np.exp(-np.abs(truth))), 1, -1)
    assert abs(calibration.temperature(margins) - 5) < 0.5
    groups = [f"g{i}" for i in range(4000)]
    raw = calibration.reliability(calibration.probability(margins))
    fitted = calibration.reliability(calibration.cross_fitted(margins, groups))
    assert calibration.calibration_error(raw) > 0.1 > 0.03 > calibration.calibration_error(fitted)
    assert calibration.temperature(-np.abs(margins)) == np.inf and np.isfinite(calibration.temperature(np.abs(margins)))
    # A group that is unlike all others does not reach its own temperature.
    odd = np.where(np.arange(4000) < 800, margins / 100, margins)
    names = ["odd"] * 800 + [f"g{i % 4}" for i in range(3200)]
    alone = calibration.probability(odd[:800], calibration.temperature(odd[800:]))
    np.testing.assert_allclose(calibration.cross_fitted(odd, names)[:800], alone, rtol=1e-6)


def test_the_calibration_error_by_hand():
    p = np.array([0.9, 0.9, 0.1, 0.5, 0.62])
    bins = calibration.reliability(p)
    assert [b.pairs for b in bins] == [1, 1, 3] and [b.right for b in bins] == [0.5, 1.0, pytest.approx(2 / 3)]
    assert calibration.calibration_error(bins) == pytest.approx((0 + 0.38 + 3 * abs(0.9 - 2 / 3)) / 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "prety"}, r"config\.layout: there is no layout 'prety', only plain, response_only"),
        ({"train": "some"}, r"config\.train='some' is not one of head, lora, all"),
        ({"train": "all", "param_dtype": "bfloat16"}, "would round small updates away"),
        ({"lr": 0.0}, r"config\.lr=0\.0 must be above 0"),
        ({"data__held_out": 1.0}, r"held_out=1\.0 must lie between"),
        ({"data__kind": "csv"}, r"config\.data\.kind='csv' is not one of jsonl, hh_rlhf"),
        ({"data__prompt": "first"}, r"config\.data\.prompt='first' is not one of transcript, last"),
        ({"data__pairs": 9}, r"gives \d pairs to fit and \d, of \d prompts, to test on; it takes at least 8"),
        ({"data__held_out": 0.01}, r"Give more pairs, or change config\.data\.held_out=0\.01"),
        ({"label": 1}, r"config\.label=1, but the model has 1 labels"),
        ({"lora__targets": "nothing"}, r"config\.lora\.targets='nothing' is in the path of no linear layer"),
        ({"batch_size": 6}, r"config\.batch_size: 6 does not divide over data=8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_written(fields, message, tiny, data, tmp_path):
    with pytest.raises(SystemExit, match=message):
        command.attempt(training.run, configured(tiny["gpt2"], data, tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops_the_run(tiny, data, tmp_path, monkeypatch):
    losses = iter([0.7, 0.6, float("nan"), 0.5])
    monkeypatch.setattr(training, "make_step", lambda *_: lambda t, opt, *_: (t, opt, next(losses), 0.5))
    monkeypatch.setattr(training, "score", lambda reward, held: np.zeros((len(held), 2)))
    with pytest.raises(SystemExit, match=r"The loss is nan at step 3 of 22: .*Lower config\.lr=0\.03"):
        command.attempt(training.run, configured(tiny["gpt2"], data, tmp_path / "out"))
    assert not (tmp_path / "out").exists() and next(losses) == 0.5


def test_scores_that_are_no_numbers_are_not_reported():
    rows = [pairs.EncodedPair(pairs.Pair("g", "p g", "a", "b"), None, None)]
    with pytest.raises(FloatingPointError, match="1 of 2 held-out scores are not finite"):
        training.score(lambda prompts, responses: np.array([1.0, np.inf]), rows)


def test_what_is_there_is_not_overwritten(tiny, data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not an empty directory"):
        command.attempt(training.run, configured(tiny["gpt2"], data, tmp_path))


def test_a_finished_model_is_left_as_it_is_and_another_configuration_is_refused_by_field(gpt2_run):
    config, report = gpt2_run

    def files():
        return {path: path.read_bytes() for path in Path(config.out).rglob("*")}

    before = files()
    assert training.run(config) == report
    other = config.copy_and_resolve_references()
    other.lr = 0.5
    with pytest.raises(ValueError, match=r"config\.lr: 0\.03 → 0\.5"):
        training.run(other)
    assert files() == before


def test_a_tokenizer_of_another_model_is_refused(tiny, data, tmp_path):
    shutil.copytree(tiny["gpt2"], tmp_path / "model")
    config = gpt2.Config(family="gpt2", activation="gelu_new", **SIZES | {"vocab_size": 99})
    classifier.save(tmp_path / "model", config, draw(config))
    with pytest.raises(SystemExit, match=r"gives the id \d+, and the model has 99 embeddings"):
        command.attempt(training.run, configured(tmp_path / "model", data, tmp_path / "out"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, r"config\.json has no entry 'meal_jax' with a layout and a label.*\"layout\": \"plain\""),
        ({"layout": "plain"}, "has no entry 'meal_jax' with a layout and a label"),
        ({"layout": "mine", "label": 0}, r"config\.json: there is no layout 'mine', only plain"),
    ],
)
def test_a_directory_that_does_not_say_how_it_is_read_is_refused(entry, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({} if entry is None else {"meal_jax": entry}))
    config = base.default()
    config.reward.sources = ("heads", f"model@{tmp_path}")
    with pytest.raises(ValueError, match=message):
        base.check(config)


def test_the_form_of_a_trained_model():
    assert sources.parse("model@/a/b") == ("model", "model", "/a/b")
    for wrong in ("model", "model@"):
        with pytest.raises(ValueError, match="model@DIRECTORY"):
            sources.parse(wrong)
