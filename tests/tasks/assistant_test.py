"""The assistant benchmark on a tiny model, invented conversations and random heads."""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax import build
from meal_jax.config import check
from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.hf import pretrained
from meal_jax.meal.step import Batch, init_state, rollout, score
from meal_jax.rewards import linear_heads
from meal_jax.runtime import sharding
from meal_jax.tasks import assistant, language

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "hh_rlhf"


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def config(chat_model, tmp_path):
    """configs/assistant_small.py on the tiny model."""
    spec = importlib.util.spec_from_file_location("assistant_small", ROOT / "configs" / "assistant_small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    c.policy.source, c.data.path = str(chat_model), str(tmp_path / "data")
    c.reward.heads = str(tmp_path / "heads.safetensors")
    c.sampling.max_new, c.eval.prompts, c.policy.lora_rank, c.batch_size = 5, 7, 2, 4
    for word, folder in zip(("yes", "thanks"), assistant.FOLDERS, strict=True):
        head = [f"\n\nHuman: {word} {i}" for i in range(60)] + [f"\n\nHuman: {'long ' * 90}{i}" for i in range(20)]
        rows = [{"chosen": h + "\n\nAssistant: a", "rejected": h + "\n\nAssistant: b"} for h in head]
        write_rows(tmp_path / "data" / folder / "test.jsonl.gz", rows)
    params = pretrained.load_params(chat_model, pretrained.load_config(chat_model))
    heads = linear_heads.Heads(
        w=np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32),
        b=np.zeros(2, np.float32),
        temperature=np.ones(2, np.float32),
        objectives=("harmless", "helpful"),
        features="last+mean",
        base=linear_heads.fingerprint(params),
        base_name="tiny",
        format=chats.describe(chats.make(pretrained.load_tokenizer(chat_model))),
        facts={},
    )
    linear_heads.save(heads, c.reward.heads)
    return c


def openings(task, prompts):
    """First human turn of each prompt."""
    text = [task.show(tokens[mask]) for tokens, mask in zip(prompts.tokens, prompts.mask, strict=True)]
    return [t.split("user\n")[1].split("\nassistant")[0] for t in text]


def test_prompts_are_split_balanced_and_short(config):
    task = build.build_task(config)
    train, test = openings(task, task.train), openings(task, task.test)
    assert {chats.split_of((("user", t),)) for t in train} == {"policy"}
    assert {chats.split_of((("user", t),)) for t in test} == {"eval"}
    assert len(test) == 7 and sum(t.startswith("yes") for t in test) == 4
    assert 2 * sum(t.startswith("yes") for t in train) == len(train) >= config.batch_size
    assert not any("long" in t for t in train + test)
    assert task.train.tokens.shape[1] == config.data.prompt_length
    assert task.evaluation_set["prompts"] == 7 and "hash split" in task.evaluation_set["name"]
    assert task.train.mask[:, -1].all() and len(set(task.train.id.tolist())) == len(train)


def test_test_prompts_do_not_hang_on_the_order_of_rows(config):
    before = assistant.build(config).test
    for folder in assistant.FOLDERS:
        path = Path(config.data.path) / folder / "test.jsonl.gz"
        rows = [json.loads(line) for line in gzip.open(path, "rt")]
        write_rows(path, rows[::-1])
    np.testing.assert_array_equal(assistant.build(config).test.tokens, before.tokens)


def test_special_and_unknown_tokens_are_forbidden_but_the_end_is_not(config):
    task = assistant.build(config)
    assert task.forbidden.shape == (320,) and not task.forbidden[task.end]
    tokenizer = pretrained.load_tokenizer(config.policy.source)
    for token in ("<|endoftext|>", "<|im_start|>", "<repo_name>"):
        assert task.forbidden[tokenizer.convert_tokens_to_ids(token)]
    assert task.forbidden[len(tokenizer) :].all() and len(tokenizer) < 320
    assert task.forbidden.sum() == 320 - len(tokenizer) + 3


def test_a_rollout_is_scored_by_the_heads_on_the_unadapted_base(config):
    config.conditioning.kind = "text"
    check(config)
    task = build.build_task(config)
    setup = build.build_setup(config, task)
    theta, frozen = build.make_policy(setup, task, jax.random.key(0), sharding.make_mesh(1, devices=jax.devices()[:1]))
    assert frozen.base is None and frozen.reference is frozen.policy  # the base is held once
    theta = jax.tree.map(lambda a: np.asarray(a) + 0.1, theta)  # adapters that adapt: the rewards must not see them
    state = jax.jit(lambda theta, key: init_state(setup, theta, key))(theta, jax.random.key(1))
    batch = Batch(*(jnp.asarray(field[:4]) for field in task.train[:3]))
    rolled = jax.jit(lambda state, frozen: rollout(setup, state, frozen, batch))(state, frozen)
    scores = jax.jit(lambda frozen, responses: score(setup, frozen, batch, responses))(frozen, rolled.responses)
    assert scores.rewards.shape == (4, config.meal.candidates, 2)
    mask = np.asarray(rolled.responses.mask)
    tokens = np.asarray(rolled.responses.tokens)
    assert not task.forbidden[tokens[mask]].any()
    # One response alone: its base states by one plain pass over prompt and response.
    k = 1
    row = np.concatenate([task.train.tokens[2][task.train.mask[2]], task.conditioning.tail, tokens[2, k][mask[2, k]]])[
        None
    ]
    weights = task.weights(None)
    whole = jax.jit(lambda tokens: setup.base.apply({"params": {"transformer": weights}}, tokens, method=states))(row)
    answer = np.asarray(whole)[0, -mask[2, k].sum() :]
    features = np.concatenate([answer[-1], answer.mean(axis=0)])
    want = features @ task.reward_params["w"].T + task.reward_params["b"]
    np.testing.assert_allclose(scores.rewards[2, k], want, rtol=1e-3, atol=1e-3)


def states(policy, tokens):
    """Last hidden states [1, S, D] of a sequence [1, S]."""
    transformer, length = policy.transformer, tokens.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return transformer(transformer.embed(tokens)[:, None], jnp.arange(length), causal)[0][:, 0]


def test_numerals_have_one_width_and_read_as_meant(config, chat_tokenizer):
    config.conditioning.kind = "text"
    c = language.make_conditioning(config.conditioning, chats.make(chat_tokenizer), ("harmless", "a much longer name"))
    assert len({len(row) for spelled in c.table for row in spelled}) == 1

    def decode(ids):
        return chat_tokenizer.decode(list(ids))

    assert decode(c.table[0][3]).lstrip() == "harmless: 0.3" and decode(c.table[1][10]) == " a much longer name: 1.0"
    assert decode(c.tail) == "<|im_start|>assistant\n"
    assert c.length == 2 * len(c.table[0][0]) + len(c.tail)


def test_objectives_follow_the_config(config):
    config.objectives = ("helpful",)
    task = assistant.build(config)
    heads = linear_heads.load(config.reward.heads)
    np.testing.assert_array_equal(task.reward_params["w"], heads.w[1:])
    assert task.conditioning.objectives == 1 == len(task.reference)
    config.objectives = ("helpful", "funny")
    with pytest.raises(ValueError, match="no reward head for funny"):
        assistant.build(config)


def test_what_is_missing_is_said(config, tmp_path):
    for source in ("", "weights/SmolLM2-none", str(tmp_path / "none")):
        config.policy.source = source
        with pytest.raises(FileNotFoundError, match=r"fetch_smollm2\.sh.*HuggingFaceTB/SmolLM2-135M-Instruct"):
            assistant.build(config)


def test_missing_data_is_said(config, tmp_path):
    config.data.path = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"harmless-base.*Anthropic/hh-rlhf.*config\.data\.path"):
        assistant.build(config)


def test_too_few_short_prompts_are_an_error(config):
    config.eval.prompts = 64
    with pytest.raises(ValueError, match=r"prompts of at most 64 tokens for eval, 32 are needed \(\d+ are longer\)"):
        assistant.build(config)


def test_heads_of_another_base_or_format_are_refused(config):
    heads = linear_heads.load(config.reward.heads)
    linear_heads.save(
        heads._replace(base=heads.base | {"final_norm": heads.base["final_norm"] * 1.1}), config.reward.heads
    )
    with pytest.raises(ValueError, match="another model than the reward heads'"):
        assistant.build(config).weights(None)
    linear_heads.save(heads._replace(format="other"), config.reward.heads)
    with pytest.raises(ValueError, match=r"format \[other\]"):
        assistant.build(config)


def published(tmp_path, subsets=("harmless-base", "helpful-online"), splits=("train", "test")):
    for subset in subsets:
        for split in splits:
            head = [f"\n\nHuman: {subset} {split} {i}, tell me something" for i in range(24)]
            head += [f"\n\nHuman: {'long ' * 90}", "\n\nHuman: both"]  # too long; in both splits
            rows = [{"chosen": h + "\n\nAssistant: a", "rejected": h + "\n\nAssistant: b"} for h in head]
            write_rows(tmp_path / "published" / subset / f"{split}.jsonl.gz", rows)
    return str(tmp_path / "published")


def test_the_published_split(config, tmp_path):
    config.data.path, config.data.split, config.eval.prompts = published(tmp_path), "published", 100
    config.data.prompt_length = 400
    task = build.build_task(config)
    rows = [f"harmless-base test {i}" for i in range(24)] + ["long", "both"]
    rows += [f"helpful-online test {i}" for i in range(24)] + ["long", "both"]
    want = [row for row in rows[::4] if row != "long"]
    assert [text.removeprefix("\n\nHuman: ").split(",")[0] for text in task.test.text] == want
    assert len(task.train.id) == 49 and all(" train " in text or "both" in text for text in task.train.text)
    assert task.evaluation_set == {
        "name": "hh-rlhf test, every 4th row", "prompts": 12, "sha256": task.evaluation_set["sha256"],
    }  # fmt: skip
    assert openings(task, task.test)[0] == "harmless-base test 0, tell me something"


def test_the_published_split_needs_both_files(config, tmp_path):
    config.data.path, config.data.split = published(tmp_path, splits=("test",)), "published"
    with pytest.raises(FileNotFoundError, match=r"no train split, only test\.jsonl\.gz.*config\.data\.split=hash"):
        build.build_task(config)
    config.data.path = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="none of the directories harmless-base"):
        build.build_task(config)


def test_prompts_of_ones_own(config, tmp_path):
    path = tmp_path / "own" / "prompts.jsonl"
    path.parent.mkdir()
    message = [f"my question number {i}" for i in range(120)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in message))
    config.data.path, config.data.format, config.eval.prompts = str(path), "own", 100
    task = build.build_task(config)
    split = {text: chats.split_of((("user", text),)) for text in message}
    assert openings(task, task.test) == [text for text in message if split[text] == "eval"]
    assert openings(task, task.train) == [text for text in message if split[text] == "policy"]
    assert task.evaluation_set["name"] == "own prompts, hash split"
    config.data.split = "published"
    with pytest.raises(FileNotFoundError, match="no row of split 'train'"):
        build.build_task(config)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published rows are not at ../shared/data/hh_rlhf")
def test_real_prompts_of_the_splits_share_no_opening(config):
    config.data.path, config.eval.prompts, config.data.prompt_length = str(REAL), 64, 96
    task = assistant.build(config)
    assert len(task.test.id) == 64 and len(task.train.id) >= 100
    assert not {t.casefold() for t in openings(task, task.train)} & {t.casefold() for t in openings(task, task.test)}


def own(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_ones_own_are_bounded_by_the_prompt_length_alone_and_others_counted(config, tmp_path, caplog):
    rows = [
        {"prompt": text, "split": "train"}
        for text in ("Hi", "Tea?", "Why?", "word " * 150, "Tea?", "long " * 400, "HI ")
    ]
    rows += [{"prompt": text, "split": "test"} for text in ("hi", "Go on", "Yes", "more " * 400)]
    config.data.path, config.data.format = str(own(tmp_path / "rows.jsonl", rows)), "own"
    config.data.prompt_length, config.eval.prompts, config.batch_size = 900, 2, 2
    with caplog.at_level("WARNING"):
        task = build.build_task(config)
    assert (
        openings(task, task.train) == ["Tea?", "Why?", ("word " * 150).strip()] and task.train.mask.sum(1).max() > 512
    )
    assert openings(task, task.test) == ["hi", "Go on"]
    assert (
        "rows.jsonl: 3 of 7 rows for training are used (1 over config.data.prompt_length=900 tokens, 1 repeated, 2 also in "
        "the evaluation); 2 of 4 rows for evaluation are used (1 over config.data.prompt_length=900 tokens, 1 more than "
        "config.eval.prompts=2)"
    ) in caplog.text
    config.data.prompt_length = 4
    with pytest.raises(
        ValueError, match=r"none has at most config\.data\.prompt_length=4 tokens.*Raise config\.data\.prompt_length"
    ):
        build.build_task(config)


def test_without_fitted_heads_both_shares_are_trained_on(config, tmp_path):
    path = own(tmp_path / "rows.jsonl", prompts("a", 100))
    config.data.path, config.data.format = str(path), "own"
    split = [
        chats.split_of(row.turns)
        for row in templates.conversation_rows([(("user", r["prompt"]),) for r in prompts("a", 100)])
    ]

    def trained(**fields):
        c = config.copy_and_resolve_references()
        c.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return len(assistant.own_rows(c, path)[0])

    few, all_but_test = split.count("policy"), 100 - split.count("eval")
    assert trained() == trained(stage="sft") == trained(reward__heads="", task="assistant") == few
    assert trained(stage="sft", reward__heads="") == trained(task="stories", reward__heads="") == all_but_test
    assert (
        trained(stage="sft", reward__heads="", reward__sources=("heads", "python:a:b"))
        == trained(task="stories")
        == few
    )
    assert trained(reward__sources=("python:a:b", "python:a:c")) == all_but_test


def test_a_users_function_reads_the_row_and_a_published_prompts_transcript(config, tmp_path):
    seen = tmp_path / "seen.json"
    code = f"import json\n\ndef see(p, r):\n    json.dump(p, open({str(seen)!r}, 'w'))\n    return [0.0] * len(r)\n"
    (tmp_path / "see.py").write_text(code)
    config.objectives, config.reward.sources = ("mine",), (f"python:{tmp_path / 'see.py'}:see",)
    build.build_task(config)
    assert all(chats.is_transcript(text) for text in json.loads(seen.read_text()))
    talk = {"messages": [{"role": r, "content": t} for r, t in (("user", "a"), ("assistant", "b"), ("user", "c"))]}
    rows = [{"prompt": "Which tea?", "split": "train"}, talk | {"split": "train"}, *prompts("t", 9)]
    config.data.path, config.data.format = (
        str(own(tmp_path / "rows.jsonl", rows + prompts("u", 9, split="test"))),
        "own",
    )
    build.build_task(config)
    assert json.loads(seen.read_text()) == ["Which tea?", "Human: a\n\nAssistant: b\n\nHuman: c"]


def prompts(word, count, **fields):
    return [{"prompt": f"{word} question {i}"} | fields for i in range(count)]


@pytest.mark.parametrize(
    ("files", "trained", "tested", "name"),
    [
        ({"rows": prompts("a", 40, split="train") + prompts("b", 9, split="test")}, "a", "b", "their own test split"),
        ({"train": prompts("a", 40), "test_set": prompts("b", 9)}, "a", "b", "their own test split"),
        ({"train": prompts("a", 40), "validation": prompts("b", 9)}, "a", "b", "their own validation split"),
        (
            {"train": prompts("a", 40), "test": prompts("b", 9), "valid": prompts("c", 9)}, "a", "b",
            "their own test split",
        ),
        ({"rows": prompts("a", 40, split="train") + prompts("b", 9, split="dev")}, "a", "b", "their own validation split"),
    ],
)  # fmt: skip
def test_rows_of_ones_own_keep_the_split_that_they_give(config, tmp_path, files, trained, tested, name):
    for stem, rows in files.items():
        own(tmp_path / "own" / f"{stem}.jsonl", rows)
    config.data.path, config.data.format, config.data.split = str(tmp_path / "own"), "own", "hash"
    train, test, result = assistant.own_rows(config, tmp_path / "own")
    assert len(train) == 40 and {row.turns[0][1][0] for row in train} == {trained}
    assert len(test) == 9 and {row.turns[0][1][0] for row in test} == {tested} and result == f"own prompts, {name}"


def test_rows_without_a_split_are_divided_and_a_split_that_trains_nothing_is_refused(config, tmp_path):
    config.data.format, config.data.split, path = "own", "hash", tmp_path / "own"
    own(path / "train.jsonl", prompts("a", 60))
    train, test, name = assistant.own_rows(config, path)
    assert train and test and not {r.name for r in train} & {r.name for r in test} and name == "own prompts, hash split"
    own(path / "train.jsonl", prompts("a", 60) + prompts("b", 5, split="test"))
    with pytest.raises(ValueError, match=r"train\.jsonl:61 has the split 'test', but the name of .* says train"):
        assistant.own_rows(config, path)
    own(path / "train.jsonl", prompts("a", 3, split="holdout"))
    with pytest.raises(
        ValueError, match=r"train\.jsonl:1 has the split 'holdout', which is none of train, test, validation"
    ):
        assistant.own_rows(config, path)
    (path / "train.jsonl").rename(path / "test.jsonl")
    own(path / "test.jsonl", prompts("a", 60))
    with pytest.raises(ValueError, match="60 rows to evaluate on and none to train on"):
        assistant.own_rows(config, path)
    own(path / "rows.jsonl", prompts("c", 60))
    train, test, name = assistant.own_rows(config, path)
    assert {r.turns[0][1][0] for r in train} == {"c"} and sum(r.turns[0][1][0] == "a" for r in test) == 60
    assert name == "own prompts, their own test split and a hash of the rows without one"
