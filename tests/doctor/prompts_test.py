"""What the doctor says of a run's prompts and of the user's functions, beside what the run itself says."""

import json

import pytest

from meal_jax import build
from meal_jax import config as base
from meal_jax.doctor import prompts

FUNCTIONS = """
def fine(prompts, responses):
    return [float(len(p) + len(r)) for p, r in zip(prompts, responses)]

def alone(prompts, responses):
    return [1.0]

def tokens(tokens, mask, prompt_tokens, prompt_mask):
    return mask.sum(-1)

def wide(tokens, mask, prompt_tokens, prompt_mask):
    return mask
"""


@pytest.fixture
def config(chat_model, tmp_path):
    """Prompts of one's own on a tiny model, with a function of texts and one of tokens."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    c = base.default()
    c.update_from_flattened_dict({
        "task": "assistant", "policy.source": str(chat_model), "data.path": str(tmp_path / "rows.jsonl"),
        "data.format": "own", "data.prompt_length": 64, "batch_size": 4, "eval.prompts": 4,
        "objectives": ("a", "b"), "reward.sources": sources(tmp_path, "python", "fine", "jax", "tokens"),
    })  # fmt: skip
    write(tmp_path, ["please yes"] * 40)
    return c


def sources(folder, *names):
    return tuple(f"{kind}:{folder / 'mine.py'}:{name}" for kind, name in zip(names[::2], names[1::2], strict=True))


def write(folder, texts):
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{text} {i}"}) + "\n" for i, text in enumerate(texts))
    )


def lines(config):
    return {line.name: line for line in prompts.prompts(config)}


def test_all_is_well(config):
    found = lines(config)
    assert {name: line.status for name, line in found.items()} == {"splits": "ok", "trial": "ok"}
    assert (
        found["splits"].detail.endswith("all are short enough") and "of a, b return one number" in found["trial"].detail
    )
    build.build_task(config)


def test_prompts_that_are_too_long_are_counted_as_the_run_counts_them(config, tmp_path, caplog):
    write(tmp_path, ["please " * (200 * (i % 2)) for i in range(80)])
    splits = lines(config)["splits"]
    with caplog.at_level("WARNING"):
        build.build_task(config)
    (said,) = (record.message for record in caplog.records if "rows for training" in record.message)
    assert splits.status == "warn" and said.partition("rows.jsonl: ")[2] in splits.detail and splits.advice
    assert "over config.data.prompt_length=64 tokens" in said


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["please " * 200] * 80, "has no prompt for training that can be used"),
        (["please yes"] * 6 + ["please " * 200] * 80, "prompts to train on are fewer than config.batch_size=16"),
    ],
)
def test_prompts_that_the_run_refuses_are_a_failure(config, tmp_path, texts, says):
    write(tmp_path, texts)
    config.batch_size = 16
    found = lines(config)
    assert found.keys() == {"splits"} and found["splits"].status == "fail" and says in found["splits"].detail
    with pytest.raises(ValueError, match="prompt"):
        build.build_task(config)


@pytest.mark.parametrize("names", [("python", "alone", "jax", "tokens"), ("python", "fine", "jax", "wide")])
def test_a_function_that_the_run_refuses_is_a_failure_in_the_same_words(config, tmp_path, names):
    config.reward.sources = sources(tmp_path, *names)
    (wrong,) = (line for line in prompts.prompts(config) if line.status == "fail")
    with pytest.raises(ValueError) as error:
        build.build_task(config)
    assert wrong.name == "trial" and wrong.detail == " ".join(str(error.value).split())


def test_more_rows_than_are_looked_at(config, monkeypatch):
    monkeypatch.setattr(prompts, "COUNTED", 4)
    splits = lines(config)["splits"]
    assert splits.status == "ok" and "of the first 4 rows of each split" in splits.detail
    config.data.prompt_length = 2
    splits = lines(config)["splits"]
    assert splits.status == "unknown" and "of the first 4 rows" in splits.detail
