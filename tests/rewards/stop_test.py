"""Answers cut among tokens, against the cut of their text; and that rewards on the device read them."""

import jax
import numpy as np
import pytest

from meal_jax.data import templates
from meal_jax.meal.step import Batch
from meal_jax.rewards import stop
from meal_jax.rollout.decode import Responses

MARKS = ("\nHuman:", "\nAssistant:")
# Tokens that begin, hold, end and cross stop texts; "" is special.
TEXTS = [
    "",
    "\n",
    "\n\n",
    "yes.",
    "Human",
    ":",
    "\nHum",
    "an:",
    ".\n",
    "Assist",
    "ant: no",
    " ",
    "a\nHuman: b",
    "ab\nA",
    "H",
    "\nH",
]


def text_of(tokens):
    return "".join(TEXTS[i] for i in tokens)


def test_random_answers_are_cut_where_their_text_is():
    rng, length = np.random.default_rng(0), 9
    tokens = rng.integers(0, len(TEXTS), (4, 2000, length))
    mask = np.arange(length) < rng.integers(0, length + 1, (4, 2000, 1))
    automata = [stop.table(TEXTS, mark) for mark in MARKS]
    got = np.asarray(jax.jit(stop.cut)(automata, tokens, mask))
    count = 0
    for row, real, kept in zip(*(x.reshape(-1, length) for x in (tokens, mask, got)), strict=True):
        whole, expected = text_of(row[real]), templates.cut(text_of(row[real]), MARKS)
        size = int(kept.sum())
        assert not kept[size:].any()
        if len(expected) == len(whole.strip()):  # no stop text: nothing changes, white space included
            assert (kept == real).all(), repr(whole)
            continue
        count += 1
        text = text_of(row[:size]).strip()
        assert text.startswith(expected), (whole, expected, text)
        # One token fewer loses text, and what is too much is in the last token that is kept.
        assert not size or (len(text_of(row[: size - 1]).strip()) < len(expected)), (whole, expected, text)
    assert count > 1000


def test_an_answer_that_begins_with_a_stop_text_is_cut_as_text_is():
    automata = [stop.table(TEXTS, mark) for mark in MARKS]
    rows = {"\nHuman: no": False, "yes.\nHuman: no": True}
    for text, shortened in rows.items():
        tokens = [TEXTS.index("yes.")] * text.startswith("yes") + [TEXTS.index(t) for t in ("\nHum", "an:", "yes.")]
        tokens = np.array([[tokens]])
        kept = int(np.asarray(stop.cut(automata, tokens, np.ones(tokens.shape, bool))).sum())
        assert (kept == 1) is shortened and (kept < tokens.size) is shortened


@pytest.fixture
def spelled(chat_tokenizer):
    """Function of a text to its ids under a tokenizer of bytes."""
    return lambda text: chat_tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_byte_level_tokenizer_is_read_with_its_special_tokens_left_out(chat_tokenizer, spelled):
    automata = stop.tables(chat_tokenizer, 320, MARKS)
    for text in ("yes, é 日本.\n\nHuman: more", "yes.\nAssistant: a\nHuman: b", "no stop  \n", "", "yes \n\n \nHuman:"):
        ids = [*spelled(text), 2]
        mask = np.asarray(stop.cut(automata, np.array([[ids]]), np.ones((1, 1, len(ids)), bool)))[0, 0]
        kept = chat_tokenizer.decode(np.array(ids)[mask], skip_special_tokens=True)
        if "Human:" in text:
            assert kept == templates.cut(text, MARKS)
        else:
            assert mask.all()
    assert stop.pieces(chat_tokenizer, 320)[2] == "" == stop.pieces(chat_tokenizer, 320)[319]


def test_a_stop_text_that_tokens_cannot_spell_is_refused(chat_tokenizer):
    with pytest.raises(ValueError, match=r"config\.data\.stop: '日本' cannot be found among this tokenizer's tokens"):
        stop.tables(chat_tokenizer, 320, ("日本",))


def test_a_rewards_function_reads_the_cut_answer(chat_tokenizer, spelled):
    ids = spelled("yes.\n\nHuman: more")
    tokens, mask = np.array([[ids]]), np.ones((1, 1, len(ids)), bool)
    responses = Responses(tokens, mask, None, np.zeros((1, 1), bool))
    reward = stop.cutting(lambda params, batch, responses, hidden: params * responses.mask.sum(-1, keepdims=True))
    params = {"own": 2.0, "stop": stop.tables(chat_tokenizer, 320, MARKS)}
    assert reward(params, Batch(None, None, None), responses, None) == 2 * len(spelled("yes."))


@pytest.mark.parametrize("marks", [None, ()])
def test_a_benchmarks_heads_read_cut_answers_under_plain_prompts(assistant_run, marks):
    """By default where the published evaluation cuts; not where the field says no."""
    from meal_jax import build
    from meal_jax.data import chat as chats
    from meal_jax.hf import pretrained
    from meal_jax.rewards import linear_heads
    from meal_jax.saved_run import read_config

    workdir = assistant_run("none")
    config = read_config(workdir, [])
    heads = linear_heads.load(workdir / "heads.safetensors")
    chat = templates.make_chat(pretrained.load_tokenizer(config.policy.source), "plain", "assistant")
    linear_heads.save(heads._replace(format=chats.describe(chat)), workdir / "plain.safetensors")
    config.data.template, config.data.stop = "plain", marks
    config.data.prompt_length, config.reward.heads = 96, str(workdir / "plain.safetensors")
    task = build.build_task(config)
    ids = chat.tokenizer("yes.\n\nHuman: more", add_special_tokens=False)["input_ids"]
    hidden = np.random.default_rng(0).normal(size=(1, 1, len(ids) + 1, 16)).astype(np.float32)
    kept = len(ids) if marks == () else len(chat.tokenizer("yes.", add_special_tokens=False)["input_ids"])
    masks = (np.arange(len(ids)) < n for n in (len(ids), kept))
    whole, short = (Responses(np.array([[ids]]), mask[None, None], None, np.zeros((1, 1), bool)) for mask in masks)
    got = task.reward(task.reward_params, Batch(None, None, None), whole, hidden)
    own = heads.reward(heads.params, Batch(None, None, None), short, hidden)
    np.testing.assert_allclose(got, own, rtol=1e-6)
    assert build.build_setup(config, task).reward is task.reward
