"""Training of reward heads: the fit, its figures, and the whole command on a tiny model."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from meal_jax import build, command, config_file
from meal_jax.data import chat as chats
from meal_jax.hf import pretrained
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.reward_training import fit_heads as heads
from meal_jax.reward_training.fit_heads import Encoded, Features
from meal_jax.rewards import linear_heads
from tests.reward_training.bradley_terry_test import planted

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reward_small.py"


def test_l2_is_strong_for_noise_and_weak_for_signal():
    grid = (1e-3, 1e-1, 10.0)
    group = np.arange(300)
    x, _ = planted(300, noise=0.1)
    assert heads.choose_l2(x[:, 0] - x[:, 1], group, grid, 5)[0] == grid[0]
    noise = np.random.default_rng(0).normal(size=(300, 50))
    assert heads.choose_l2(noise, group, grid, 5)[0] == grid[-1]


def test_folds_keep_groups_together():
    # Pairs come in copies with labels that nothing explains: only a leak between folds makes a weak penalty look good.
    d = np.repeat(np.random.default_rng(0).normal(size=(40, 60)), 5, axis=0)
    grid = (1e-4, 100.0)
    assert heads.choose_l2(d, np.arange(200), grid, 5)[0] == grid[0]
    assert heads.choose_l2(d, np.repeat(np.arange(40), 5), grid, 5)[0] == grid[1]


def features(noise=0.3):
    """Two objectives that want different directions; three quarters of the pairs are for fitting."""
    a, _ = planted(800, noise=noise, seed=1)
    b, _ = planted(800, noise=noise, seed=2)
    x = np.concatenate([a, b]) * np.array([1, 10, 100, 0.1, 1, 1]) + 5.0  # scales that differ, a mean that is not 0
    return Features(x.astype(np.float32), np.repeat([0, 1], 800), np.arange(1600) % 4 != 0, np.arange(1600))


def test_heads_are_right_on_pairs_they_never_saw_and_normalised():
    f = features()
    params, reports, _ = heads.fit_heads(f, ("a", "b"), (1e-3, 1e-2, 1e-1), 3)
    scores = f.x @ params["w"].T + params["b"]
    held = scores[~f.fitted].reshape(-1, 2)
    np.testing.assert_allclose(held.mean(axis=0), 0.0, atol=1e-3)
    np.testing.assert_allclose(held.std(axis=0), 1.0, atol=1e-3)
    for k, (name, report) in enumerate(reports.items()):
        outside = ~f.fitted & (f.objective == k)
        margin = scores[outside, 0, k] - scores[outside, 1, k]
        assert (report.fitted, report.tested) == (600, 200)
        assert (
            report.accuracy
            == np.mean(margin > 0)
            > 0.9
            > np.mean(scores[outside, 0, 1 - k] > scores[outside, 1, 1 - k])
        )
        assert report.interval[0] < report.accuracy < report.interval[1]
        log_odds = params["temperature"][k] * margin
        np.testing.assert_allclose(report.nll, np.mean(np.log1p(np.exp(-log_odds))), rtol=1e-3)
        assert abs(report.confidence - report.accuracy) < 0.05, name  # log-odds are calibrated


def test_held_out_pairs_do_not_reach_the_weights():
    f = features()
    first, *_ = heads.fit_heads(f, ("a", "b"), (1e-2,), 3)
    spoiled = f.x.copy()
    spoiled[~f.fitted] = spoiled[~f.fitted][:, ::-1] * 3.0
    second, reports, _ = heads.fit_heads(f._replace(x=spoiled), ("a", "b"), (1e-2,), 3)

    def direction(params):
        return params["w"] / np.linalg.norm(params["w"], axis=1, keepdims=True)

    np.testing.assert_allclose(direction(first), direction(second), rtol=1e-4, atol=1e-6)
    assert all(report.accuracy < 0.1 for report in reports.values())


def test_too_few_pairs_are_refused_by_name():
    f = features()
    with pytest.raises(ValueError, match="Objective b has 0 pairs to fit and 800 to test on"):
        heads.fit_heads(f._replace(fitted=f.fitted & (f.objective == 0)), ("a", "b"), (1e-2,), 3)


def test_narrowing_keeps_the_features_asked_for():
    f = features()
    assert heads.select_features(f, "last+mean").x.shape[-1] == 6
    np.testing.assert_array_equal(heads.select_features(f, "last").x, f.x[..., :3])
    np.testing.assert_array_equal(heads.select_features(f, "mean").x, f.x[..., 3:])


def test_extraction_does_not_hang_on_batches_or_buckets(chat_model):
    config = pretrained.load_config(chat_model)
    params = pretrained.load_params(chat_model, config)
    policy = Policy(config, Conditioning(kind="none"))

    def ids(low, count):
        return list(range(low, low + count))

    rows = [
        Encoded(0, False, 0, ids(10, 5), (ids(40, 3), ids(50, 6))),
        Encoded(0, False, 1, ids(20, 20), (ids(60, 1), ids(70, 4))),  # of another bucket
        Encoded(0, False, 2, ids(30, 9), (ids(80, 2), ids(90, 2))),
        Encoded(0, False, 3, ids(30, 16), (ids(95, 5), ids(50, 6))),  # a batch that is not full
    ]
    together = heads.extract(policy, params, rows, max_new=6, batch_size=2, pad=2)
    assert together.shape == (4, 2, 32)
    rest = [row._replace(responses=row.responses[::-1]) for row in (rows[3], rows[2], rows[0])]
    apart = heads.extract(policy, params, rest, max_new=7, batch_size=3, pad=0)
    np.testing.assert_allclose(apart[:, ::-1], together[[3, 2, 0]], rtol=1e-3, atol=1e-4)
    assert np.abs(together[0, 0] - together[0, 1]).max() > 1e-2


@pytest.fixture
def config(chat_model, tmp_path):
    """configs/reward_small.py on a tiny model and invented pairs, in which a polite answer is always preferred."""
    spec = importlib.util.spec_from_file_location("reward_small", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.source, c.out, c.cache = str(chat_model), str(tmp_path / "out" / "h.safetensors"), str(tmp_path / "features.npz")
    c.data.path, c.data.max_new, c.data.prompt_length, c.batch_size, c.folds, c.l2 = (
        str(tmp_path),
        6,
        64,
        8,
        2,
        (1e-2, 1.0),
    )
    for source in c.objectives.values():
        folder = source.partition(":")[2]
        (tmp_path / folder).mkdir()
        lines = []
        for i in range(40):
            head = f"\n\nHuman: {folder[:4]} {i}"
            lines.append({"chosen": f"{head}\n\nAssistant: please {i}", "rejected": f"{head}\n\nAssistant: no {i}"})
        lines.append(
            {
                "chosen": f"\n\nHuman: {'long ' * 90}\n\nAssistant: a",
                "rejected": f"\n\nHuman: {'long ' * 90}\n\nAssistant: b",
            }
        )
        lines.append(
            {"chosen": f"{head}\n\nAssistant: {'yes ' * 20}a", "rejected": f"{head}\n\nAssistant: {'yes ' * 20}b"}
        )
        (tmp_path / folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return c


def test_the_command_writes_heads_that_order_pairs(config, chat_model, tmp_path, monkeypatch):
    _, reports = heads.run(config)
    fitted = linear_heads.load(config.out)
    assert fitted.objectives == ("harmless", "helpful") and fitted.w.shape == (2, 16)
    assert all(report.accuracy == 1.0 for report in reports.values())  # "please" against "no" is easy
    linear_heads.check_base(fitted, pretrained.load_params(chat_model, pretrained.load_config(chat_model)), "here")
    linear_heads.check_format(fitted, chats.describe(chats.make(pretrained.load_tokenizer(chat_model))))
    card = Path(config.out).with_suffix(".md").read_text()
    for fact in (
        config.command,
        "MIT",
        "40 pairs of harmless-base; left out: 1 a prompt over 64 tokens, 1 the same answer twice when cut.",
        "- Held out: every pair whose first human turn",
        "1.000",
    ):
        assert fact in card
    # Again, from the kept features: no answer is read, and the heads are the same.
    monkeypatch.setattr(heads, "extract", None)
    again, _ = heads.run(config)
    np.testing.assert_array_equal(again.w, fitted.w)
    before = Path(config.out).read_bytes()
    config.l2 = (0.5, 1.0)
    with pytest.raises(ValueError, match=r"config\.l2: \[0\.01, 1\.0\] → \[0\.5, 1\.0\]"):
        heads.run(config)
    assert Path(config.out).read_bytes() == before
    config.out = str(tmp_path / "out" / "other.safetensors")
    config.data.max_new = 5  # other features: those kept will not do
    with pytest.raises(TypeError):
        heads.run(config)


def test_fitted_and_held_out_conversations_are_disjoint(config, chat_model):
    rows, counts, held_out = heads.read_encoded(config, chats.make(pretrained.load_tokenizer(chat_model)))
    fitted = {row.group for row in rows if not row.held_out}
    held = {row.group for row in rows if row.held_out}
    assert fitted and held and not fitted & held
    assert len(rows) == 80 and counts["helpful"].startswith("40 pairs of helpful-base; left out: 1 a")
    assert all(len(ids) <= 6 for row in rows for ids in row.responses)
    assert held_out.startswith("every pair whose first human turn")
    config.data.pairs = 20
    some, *_ = heads.read_encoded(config, chats.make(pretrained.load_tokenizer(chat_model)))
    assert [row for row in rows if row in some] == some and len(some) == 40
    assert abs(sum(row.held_out for row in some) - sum(row.held_out for row in rows) / 2) <= 1


def own_pairs(config, tmp_path, **files):
    config.data.path, config.objectives = str(tmp_path), {name: f"own:{name}.jsonl" for name in files}
    for name, rows in files.items():
        lines = [{"prompt": f"q {i}", "chosen": f"yes {j}", "rejected": f"no {j}", "split": s} for i, j, s in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_no_head_is_fitted_on_a_prompt_that_any_is_tested_on(config, chat_model, tmp_path):
    brief = [(i, j, "test" if i < 8 and j else "train") for i in range(20) for j in range(2)]
    own_pairs(config, tmp_path, brief=brief, kind=[(i, 0, "train" if i < 25 else "test") for i in range(30)])
    rows, counts, held_out = heads.read_encoded(config, chats.make(pretrained.load_tokenizer(chat_model)))
    fitted, held = ({tuple(row.prompt) for row in rows if row.held_out is part} for part in (False, True))
    assert len(fitted) == 17 and len(held) == 13 and not fitted & held
    assert counts["brief"] == "32 pairs of brief.jsonl; left out: 8 of a prompt that is also held out."
    assert counts["kind"] == "22 pairs of kind.jsonl; left out: 8 of a prompt that is also held out."
    assert held_out == "the pairs whose row or file says test or validation"


def test_too_few_pairs_are_counted_before_a_model_is_read(config, tmp_path, monkeypatch):
    own_pairs(config, tmp_path, brief=[(i, 0, "test" if i else "train") for i in range(9)])
    monkeypatch.setattr(heads.pretrained, "load_params", None)
    with pytest.raises(ValueError, match=r"brief has 1 pairs to fit and 8 to test on; .* says test .*9 pairs of brief"):
        heads.run(config)


def test_what_is_missing_is_said(config, tmp_path):
    with pytest.raises(SystemExit, match=r"fetch_smollm2\.sh"):
        config.source = str(tmp_path / "nowhere")
        command.attempt(heads.run, config)


def test_missing_pairs_are_said(config, tmp_path):
    config.data.path = str(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match=r"harmless-base.*Anthropic/hh-rlhf"):
        command.attempt(heads.run, config)


@pytest.mark.parametrize("folds", [1, 0, -1])
def test_a_cross_validation_without_parts_is_refused(config, folds):
    config.folds = folds
    with pytest.raises(SystemExit, match=rf"config\.folds={folds} must be at least 2"):
        command.attempt(heads.run, config)


def test_unknown_features_are_refused(config):
    config.features = "first"
    with pytest.raises(SystemExit, match=r"config\.features='first' is not one of last, mean, last\+mean"):
        command.attempt(heads.run, config)


def test_heads_on_own_pairs_and_a_base_model_give_the_rewards_of_a_run(tmp_path):
    """The story model of the package: prompts are the run's, id for id, and the device scores answers by the heads."""
    names = ("Tom", "Ann", "Ben", "Lily", "Max", "Sue", "Tim", "Mia", "Sam", "Joy")
    beginnings = [
        f"Once upon a time, {name} met a {kind} dog." for name in names for kind in ("big", "red", "small", "sad")
    ]
    spoken = [f'"Hello, dog!" said {name}. "Let us play."' for name in names for _ in range(4)]
    calm = [f"{name} went home and ate a cake." for name in names for _ in range(4)]
    for objective, chosen, rejected in (("spoken", spoken, calm), ("calm", calm, spoken)):
        rows = zip(beginnings, chosen, rejected, strict=True)
        lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in rows]
        (tmp_path / f"{objective}.jsonl").write_text("\n".join(lines))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in beginnings))
    c = config_file.read_config_file(f"{CONFIG.with_name('reward_own.py')}:spoken,calm")
    c.source, c.out, c.data.path = "stories260k", str(tmp_path / "heads.safetensors"), str(tmp_path)
    c.data.template, c.data.task, c.data.max_new = "plain", "stories", 24
    fitted, reports = heads.run(c)
    assert all(report.accuracy == 1.0 for report in reports.values())

    config = config_file.read_config_file(f"{CONFIG.with_name('own.py')}:text")
    config.objectives, config.reward.heads = ("spoken", "calm"), c.out
    config.data.path, config.eval.prompts, config.batch_size = str(tmp_path / "prompts.jsonl"), 4, 4
    task = build.build_task(config)
    assert task.reward_reads_base and task.reference.tolist() == [-2.5, -2.5]
    np.testing.assert_array_equal(task.reward_params["w"], fitted.w[::-1])  # a file has them by name
    task.weights(None)  # the heads' base
    rows, *_ = heads.read_encoded(c, task.chat)
    known = {tuple(row.prompt) for row in rows}
    tail = tuple(task.conditioning.tail)
    for tokens, real in zip(task.train.tokens, task.train.mask, strict=True):
        assert (*tokens[real].tolist(), *tail) in known
    with pytest.raises(ValueError, match="no reward head for happy; the file has calm, spoken"):
        config.objectives = ("calm", "happy")
        build.build_task(config)
    with pytest.raises(ValueError, match="takes the objectives' names after the colon"):
        config_file.read_config_file(str(CONFIG.with_name("reward_own.py")))
