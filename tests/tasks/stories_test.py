"""The benchmark of real text: its prompts, its rewards against Python counts over the answers' texts, a run and its resume."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stories as configs
from meal_jax import build, train
from meal_jax.data import chat as chats
from meal_jax.hf import pretrained
from meal_jax.meal.step import Batch
from meal_jax.rewards.python import token_column  # noqa: F401 - the module that K = 3 reads must import
from meal_jax.rollout.decode import Responses
from meal_jax.tasks import stories, story_text


def count_dialogue(text):
    spoken = "".join(re.findall(r'"[^"]*(?:"|$)', text))
    return (len(re.sub(r"\s", "", spoken)) / max(len(re.sub(r"\s", "", text)), 1)) ** 0.5


def count_cheerful(text):
    words = re.findall(r"[a-z']+", re.sub(r'"[^"]*("|$)', " ", text).lower())
    return (sum(word in story_text.CHEERFUL for word in words) / max(len(re.findall(r"[A-Za-z']+", text)), 1)) ** 0.5


@pytest.fixture(scope="module")
def task():
    return build.build_task(configs.get_config())


def test_rewards_by_hand():
    assert count_dialogue('Tim said, "Hi you!"') == pytest.approx((8 / 16) ** 0.5)
    assert count_cheerful('Tim was happy. "So happy!" He smiled') == pytest.approx((2 / 7) ** 0.5)
    text = np.zeros((2, 40), np.uint8)
    for row, message in zip(text, ('Tim said, "Hi you!"', 'Tim was happy. "So happy!" He smiled'), strict=True):
        row[: len(message)] = [ord(c) for c in message]
    np.testing.assert_allclose(stories.dialogue(text), [(8 / 16) ** 0.5, (10 / 30) ** 0.5], rtol=1e-6)
    np.testing.assert_allclose(stories.cheerful(text), [0.0, (2 / 7) ** 0.5], rtol=1e-6)


def test_jitted_rewards_equal_a_count_over_the_answers_text(task):
    tokenizer, end = task.chat.tokenizer, task.end
    texts = [
        'Tim was very happy. "I love you," said his mom. He smiled and hugged her.',
        '"Hello, friend!" said the frog.\n"Do you want to play? It is fu',
        "He unloved the kind's dog",
        "",
        '""" happy "x" Happy, happy',
    ]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    length = max(map(len, rows)) + 1
    tokens, mask = np.full((1, len(rows), length), task.pad, np.int32), np.zeros((1, len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[0, i, : len(row) + 1], mask[0, i, : len(row) + 1] = [*row, end], True
    responses = Responses(tokens, mask, np.zeros(tokens.shape, np.float32), np.ones((1, len(rows)), bool))
    result = jax.jit(task.reward)(task.reward_params, None, responses, None)
    display = [task.show(tokens[0, i][mask[0, i]]) for i in range(len(rows))]
    assert display == texts
    np.testing.assert_allclose(result[0, :, 0], [count_dialogue(text) for text in texts], rtol=1e-6)
    np.testing.assert_allclose(result[0, :, 1], [count_cheerful(text) for text in texts], rtol=1e-6)
    assert result.shape == (1, len(rows), 2)
    for k, python in enumerate((story_text.dialogue, story_text.cheerful)):  # the same rewards as functions of texts
        np.testing.assert_allclose(result[0, :, k], python([""] * len(texts), texts), rtol=1e-6)


def test_shy_heroes_have_no_speech_and_brave_ones_no_cheer(task):
    fitting = build.build_task(configs.get_config("attainable"))
    assert fitting.objectives == ("fitting_dialogue", "fitting_cheerful")
    rows = task.chat.tokenizer('Tim smiled. "Hi!" He was happy.', add_special_tokens=False)["input_ids"]
    batch = Batch(*(jnp.asarray(field) for field in task.train[:3]))
    shape = (len(task.train.id), 1, len(rows))
    tokens = np.broadcast_to(np.array(rows, np.int32), shape)
    answers = Responses(tokens, np.ones(shape, bool), np.zeros(shape, np.float32), np.ones(shape[:2], bool))
    plain = task.reward(task.reward_params, batch, answers, None)
    assert jnp.all(plain > 0.3)
    natures = [text.split(" named ")[0].split()[-2] for text in task.train.text]
    assert {nature: natures.count(nature) > 30 for nature in natures} == dict.fromkeys(
        ("little", "big", "small", "brave", "curious", "shy"), True
    )
    able = [[nature not in ("shy", "small"), nature not in ("brave", "curious")] for nature in natures]
    result = jax.jit(fitting.reward)(fitting.reward_params, batch, answers, None)
    np.testing.assert_array_equal(result, plain * np.array(able, np.float32)[:, None])


def test_prompts_are_the_shipped_beginnings_and_end_before_a_new_paragraph(task):
    rows = [json.loads(line) for line in stories.PROMPTS.read_text().splitlines()]
    want = {split: [row["prompt"] for row in rows if row["split"] == split] for split in ("train", "test")}
    assert list(task.train.text) == want["train"] and list(task.test.text) == want["test"]
    assert len(task.test.id) == 64 and not set(task.train.id.tolist()) & set(task.test.id.tolist())
    first = task.train.tokens[0][task.train.mask[0]].tolist()
    tokenizer = pretrained.load_tokenizer("stories260k")
    assert first == tokenizer(want["train"][0])["input_ids"]  # <s>, then what llama2.c makes of the text
    assert task.conditioning.tail == (tokenizer.convert_tokens_to_ids("<0x0A>"),)
    assert task.end == tokenizer.bos_token_id and not task.forbidden[task.end] and task.forbidden[[0, 2]].all()


def test_an_unknown_reward_is_named():
    config = configs.get_config()
    config.objectives = ("dialogue", "sad")
    with pytest.raises(ValueError, match="no reward sad; it has dialogue, cheerful, fitting_dialogue"):
        build.build_task(config)


def test_beginnings_of_ones_own(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"A cat met {i} dogs.", "split": "train", "response": "They ran."} for i in range(9)]
    rows.append({"prompt": "A dog met a cat.", "split": "test"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.get_config()
    config.data.path = str(path)
    task = build.build_task(config)
    assert len(task.train.id) == 9 and task.test.text == ("A dog met a cat.",)
    learned = stories.answers(config)
    assert learned[chats.hash_of(chats.name_of((("user", "A cat met 3 dogs."),)))] == ["They ran."]


def test_a_batch_of_the_third_objective_needs_the_host(tmp_path):
    task = build.build_task(configs.get_config("k=3"))
    assert [reward is None for reward in task.text_rewards] == [True, True, False]
    with pytest.raises(ValueError, match="takes k=2, k=3, attainable or heads after the colon, not 'k=4'"):
        configs.get_config("k=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function that runs two small steps and an evaluation in one workdir, and goes on there when it is called again."""
    config = configs.get_config()
    changes = {
        "steps": 2, "batch_size": 2, "meal.candidates": 2, "sampling.max_new": 4, "eval.prompts": 2, "eval.batch_size": 2,
        "eval.divisions": 1, "eval.bootstrap": 5, "policy.lora_rank": 2, "tensorboard": False, "compare_with": (),
        "checkpoint.every": 1, "eval.samples": 1, "method": "static",
    }  # fmt: skip
    config.update_from_flattened_dict(changes)
    workdir = tmp_path_factory.mktemp("stories")
    with pytest.MonkeyPatch.context() as patch:
        first = train.sharding.make_mesh(1, devices=jax.devices()[:1])
        patch.setattr(train.sharding, "make_mesh", lambda *axes: first)
        yield lambda: (train.run(config, str(workdir))["static"], workdir)


def test_two_steps(run):
    result, _ = run()
    assert np.all(np.isfinite(result["points"])) and len(result["fluency"]["log_likelihood"]) == 2
    assert result["evaluation_set"]["name"] == "story beginnings" and result["samples"][0]["prompt"].startswith("Once")


@pytest.mark.slow
def test_a_run_put_back_to_its_first_step_ends_with_the_same_front(run):
    whole, workdir = run()
    shutil.rmtree(workdir / "checkpoints" / "2")
    again, _ = run()
    assert again["seconds_training"] is None  # it resumed
    assert again["points"] == whole["points"] and again["fluency"] == whole["fluency"]


def test_the_reward_is_one_function_of_the_batch(task):
    batch = Batch(*(jnp.asarray(field[:2]) for field in task.train[:3]))
    shape = jax.eval_shape(
        task.reward, task.reward_params, batch,
        Responses(jnp.zeros((2, 3, 5), jnp.int32), jnp.ones((2, 3, 5), bool), jnp.zeros((2, 3, 5)), jnp.ones((2, 3), bool)),
        None,
    )  # fmt: skip
    assert shape.shape == (2, 3, 2) and shape.dtype == jnp.float32
