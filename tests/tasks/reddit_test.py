"""The Reddit benchmark on a tiny model and invented comparisons; real posts where they are at hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from meal_jax import build
from meal_jax.data import chat as chats
from meal_jax.data import prepare, templates
from meal_jax.generate import answers
from meal_jax.tasks import reddit

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "summarize_from_feedback"


def row(i, split, post=None, name=None):
    post = f"Post {i}.\n" + "It says a thing. " * 8 if post is None else post
    info = {"id": name or f"t3_{i:03}", "post": post, "title": "", "subreddit": ""}
    summaries = [{"text": "a", "policy": ""}, {"text": "b", "policy": ""}]
    return {"info": info, "split": split, "summaries": summaries, "choice": 0, "batch": ""}


ROWS = [row(i, "train") for i in range(60)] + [row(i, "train") for i in range(5)]  # posts are compared more than once
ROWS += [row(i, "valid1" if i % 2 else "valid2") for i in range(159, 99, -1)]
ROWS += [row(200, "valid1", "short"), row(201, "valid1", "x " * 700), row(7, "train", name="t3_again")]
# Posts of the evaluation, compared in training too, one under another id.
ROWS += [row(110, "train"), row(112, "train", name="t3_other")]


@pytest.fixture
def config(chat_model, tmp_path):
    """configs/reddit.py on the tiny model, with rewards that need no model."""
    spec = importlib.util.spec_from_file_location("reddit_config", ROOT / "configs" / "reddit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config()
    (tmp_path / "rewards.py").write_text("def length(prompts, responses):\n    return [len(r) for r in responses]\n")
    c.reward.sources = (f"python:{tmp_path / 'rewards.py'}:length",) * 2
    c.policy.source, c.policy.dtype, c.policy.param_dtype, c.policy.lora_rank = str(chat_model), "float32", "float32", 2
    c.data.path, c.data.prompt_length, c.data.buckets = str(tmp_path / "data"), 512, ()
    c.batch_size, c.sampling.max_new = 4, 5
    write(tmp_path / "data" / "comparisons.jsonl", ROWS)
    return c


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_published_split(config):
    task = build.build_task(config)
    message = [f"Post {i}. It says" for i in range(100, 160)]
    assert [text[: len(s)] for text, s in zip(task.test.text, message, strict=True)] == message  # each id once, sorted
    assert task.test.id.tolist() == [chats.hash_of(f"t3_{i}") for i in range(100, 160)]
    assert len(task.train.text) == 61 and not set(task.train.text) & set(task.test.text)
    assert task.evaluation_set["prompts"] == 60 and "validation, first 2000 ids" in task.evaluation_set["name"]
    display = task.show(task.test.tokens[0][task.test.mask[0]])
    assert (
        display
        == f"### Instruction: Generate a one-sentence summary of this post. ### Input: {task.test.text[0]}".strip()
    )
    assert task.chat.tokenizer.decode(task.conditioning.tail) == " ### Response:"


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_post_that_a_person_sends_is_asked_as_in_training(config, template):
    config.data.template = template
    task = build.build_task(config)
    post = f"Post 100.\n{'It says a thing. ' * 8}"
    for typed in (post, f"{templates.INSTRUCTION}\n\n{post}"):
        sent = answers.read_prompt(task, typed)
        np.testing.assert_array_equal(sent.tokens[0], task.test.tokens[0])
        assert sent.text == task.test.text[:1]  # what its rewards read
    more = answers.read_prompts(task, [(("user", post), ("assistant", "A thing."), ("user", "Shorter."))])
    shown = task.show(more.tokens[0][more.mask[0]])
    assert "Shorter." in shown and shown.count(templates.INSTRUCTION) == (1 if template == "chat" else 2)


def test_the_evaluation_set_is_the_same_whatever_the_run_and_the_order_of_rows(config):
    before = build.build_task(config).evaluation_set
    write(Path(config.data.path) / "comparisons.jsonl", ROWS[::-1])
    config.seed, config.meal.tau, config.objectives, config.steps = 5, 0.9, ("faithful", "deberta"), 3
    assert build.build_task(config).evaluation_set == before
    config.eval.prompts = 7
    fewer = build.build_task(config)
    assert fewer.evaluation_set["prompts"] == len(fewer.test.id) == 7 and fewer.evaluation_set != before
    assert [int(text[5:8]) for text in fewer.test.text] == [100 + i * 60 // 7 for i in range(7)]


def test_the_first_2000_ids_are_taken_before_lengths_are_measured(config, monkeypatch):
    monkeypatch.setattr(reddit, "FIRST", 10)
    rows = [
        r if r["info"]["id"] != "t3_103" else row(103, "valid1", "é" * 400) for r in ROWS
    ]  # 800 bytes, as many tokens
    write(Path(config.data.path) / "comparisons.jsonl", rows)
    assert [int(text[5:8]) for text in build.build_task(config).test.text] == [100, 101, 102, 104, *range(105, 110)]


def test_the_hash_split_divides_what_is_at_hand(config):
    write(Path(config.data.path) / "comparisons.jsonl", [row(i, "valid1") for i in range(80)])
    with pytest.raises(FileNotFoundError, match=r"no posts of the train split.*config\.data\.split=hash"):
        build.build_task(config)
    config.data.split = "hash"
    task = build.build_task(config)
    split = {i: chats.split_of((("user", f"t3_{i:03}"),)) for i in range(80)}

    def numbers(prompts):
        return [int(text.split(".")[0].split()[1]) for text in prompts.text]

    assert sorted(numbers(task.test)) == [i for i in split if split[i] == "eval"]
    assert sorted(numbers(task.train)) == [i for i in split if split[i] != "eval"]  # no heads were fitted on any
    assert "hash split" in task.evaluation_set["name"]


def test_prepared_posts_are_the_same_prompts(config, tmp_path):
    raw = build.build_task(config)
    prepare.prepare("summarize_from_feedback", config.data.path, tmp_path / "out")
    config.data.path = str(tmp_path / "out" / "summarize_from_feedback")
    ready = build.build_task(config)
    for first, other in ((raw.train, ready.train), (raw.test, ready.test)):
        np.testing.assert_array_equal(first.tokens, other.tokens)
        assert first.text == other.text
    assert ready.evaluation_set == raw.evaluation_set


def test_prompts_are_measured_by_every_reward_models_tokenizer(config, chat_model, monkeypatch):
    class Few:  # a reward model's tokenizer under which long posts are too long
        def __call__(self, texts, **options):
            return {"input_ids": [[0] * (600 if "Post 11" in text else 100) for text in texts]}

    real = reddit.language.pretrained.load_tokenizer

    def few(source):
        return real(source) if str(source) == str(chat_model) else Few()

    monkeypatch.setattr(reddit.language.pretrained, "load_tokenizer", few)
    monkeypatch.setattr(build.attach_rewards, "attach", lambda task, config: task)
    config.reward.sources = ("summary", "faithful")
    numbers = [int(text[5:8]) for text in build.build_task(config).test.text]
    assert numbers == [i for i in range(100, 160) if i // 10 != 11]


def test_posts_with_their_authors_summaries_are_divided_by_id_and_have_answers(config, tmp_path):
    rows = [
        {"id": f"t3_{i:03}", "post": f"Post {i}. " + "It says a thing. " * 8, "summary": f" sum {i}"} for i in range(60)
    ]
    write(tmp_path / "posts" / "posts.jsonl", rows)
    config.data.posts = str(tmp_path / "posts")
    with pytest.raises(ValueError, match=r"config\.data\.split=hash"):
        build.build_task(config)
    config.data.split = "hash"
    task = build.build_task(config)
    numbers = [[int(text.split(".")[0].split()[1]) for text in part.text] for part in (task.train, task.test)]
    assert sorted(numbers[0] + numbers[1]) == list(range(60))
    assert all((chats.split_of((("user", f"t3_{i:03}"),)) == "eval") == (i in numbers[1]) for i in range(60))
    result = reddit.answers(config)
    assert [result[i] for i in task.test.id.tolist()] == [[f"sum {i}"] for i in numbers[1]]
    config.data.posts = ""
    assert reddit.answers(config)[chats.hash_of("t3_003")] == ["a", "a"]  # compared twice


def test_prompts_that_do_not_fit_are_said(config):
    config.data.prompt_length = 16
    with pytest.raises(ValueError, match=r"no prompt for training.*of 63 rows.*config\.data\.prompt_length=16"):
        build.build_task(config)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published rows are not at ../shared/data/summarize_from_feedback")
def test_real_posts(config, monkeypatch):
    # The tiny tokenizer knows bytes and few words: real posts are long under it.
    monkeypatch.setattr(templates, "within", lambda rows, *_: (rows, {}))
    config.data.path, config.data.split, config.data.template = str(REAL), "hash", "chat"
    config.data.prompt_length = 1500
    task = build.build_task(config)
    assert 40 < len(task.test.id) < 80 and len(task.train.id) > 250
    assert not set(task.train.text) & set(task.test.text)
    assert "Generate a one-sentence summary of this post.\n\n" in task.show(task.test.tokens[0][task.test.mask[0]])
