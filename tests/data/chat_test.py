"""Conversations to tokens: the template's format, the end token, padding, and the split."""

import numpy as np
import pytest

from meal_jax.data import chat as chats
from meal_jax.export import chat_template

TURNS = (("user", "yes please"), ("assistant", "no"), ("user", "thank you"))


@pytest.fixture(scope="module")
def chat(chat_tokenizer):
    return chats.make(chat_tokenizer)


def test_prompts_are_the_templates_with_an_empty_system_message(chat):
    ids = chats.prompt_ids(chat, TURNS) + chats.tail_ids(chat)
    assert chat.tokenizer.decode(ids) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nyes please<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nthank you<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(chat.tokenizer.bos_token_id) == 5  # one per turn: the tokenizer adds none of its own


def test_without_a_system_message_the_template_has_its_way(chat_tokenizer):
    ids = chats.prompt_ids(chats.make(chat_tokenizer, system=None), TURNS)
    assert "nobody asked for" in chat_tokenizer.decode(ids)


def test_a_response_ends_with_the_end_of_turn_token_unless_cut(chat):
    ids = chats.response_ids(chat, "yes please")
    assert chat.end == chat.tokenizer.convert_tokens_to_ids("<|im_end|>") == ids[-1]
    assert chat.tokenizer.decode(ids[:-1]) == "yes please"
    assert chats.response_ids(chat, "yes please", limit=len(ids)) == ids
    assert chats.response_ids(chat, "yes please", limit=len(ids) - 1) == ids[:-1]


def test_prompt_and_response_are_the_transcript(chat):
    whole = chats.prompt_ids(chat, TURNS) + chats.tail_ids(chat) + chats.response_ids(chat, "yes")
    closed = chats.render(chat, (*TURNS, ("assistant", "yes")), False)
    assert chat.tokenizer.decode(whole) == closed.removesuffix("\n")


def test_the_tail_opens_the_answer(chat):
    assert chat.tokenizer.decode(chats.tail_ids(chat)) == "<|im_start|>assistant\n"


def test_padding_is_on_the_left():
    prompts = chats.pad_left([[5, 6], [7, 8, 9]], 4, pad=2, ids=[11, 12])
    assert prompts.tokens.tolist() == [[2, 2, 5, 6], [2, 7, 8, 9]]
    assert prompts.mask.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert prompts.id.tolist() == [11, 12] and prompts.id.dtype == prompts.tokens.dtype == np.int32
    with pytest.raises(ValueError, match="Prompt 0 has 5 tokens, there is room for 1 to 4"):
        chats.pad_left([[1] * 5], 4, pad=0)


def test_long_prompts_are_skipped_and_counted_and_repeats_kept_once(chat):
    long = (("user", "yes " * 50),)
    length = len(chats.prompt_ids(chat, TURNS))
    prompts, too_long = chats.encode_prompts(chat, [TURNS, long, TURNS, TURNS[2:]], length)
    assert too_long == 1 and prompts.tokens.shape == (2, length)
    assert prompts.tokens[0].tolist() == chats.prompt_ids(chat, TURNS)
    again, _ = chats.encode_prompts(chat, [TURNS[2:], TURNS], length)
    assert again.id.tolist() == prompts.id.tolist()[::-1]  # a name hangs on the text alone
    assert (prompts.id >= 0).all()


def test_a_long_prompt_that_a_person_gave_is_an_error(chat):
    assert chats.encode_explicit(chat, ["yes"], 64).tokens.shape == (1, 64)
    with pytest.raises(
        ValueError,
        match=r"there is room for 64 \(config\.data\.prompt_length.*of 2 prompts 1 are too long.*shorten 1\.",
    ):
        chats.encode_explicit(chat, ["yes", "yes " * 80], 64)


def test_the_split_hangs_on_the_first_human_turn_alone():
    openings = [f"question {i}" for i in range(4000)]
    names = [chats.split_of((("user", text),)) for text in openings]
    for name, share in chats.SPLITS.items():
        assert abs(names.count(name) / len(names) - share) < 0.03
    for text, name in zip(openings[:50], names, strict=False):
        assert chats.split_of((("user", f" {text.upper()}\n"), ("assistant", "a"), ("user", text[::-1]))) == name
    assert names[:6] == ["reward", "reward", "policy", "eval", "reward", "reward"]  # fixed for ever: heads rely on it


def test_unusable_templates_are_refused(chat_tokenizer, monkeypatch):
    for text, says in (
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", "special token"),
    ):
        monkeypatch.setattr(chat_tokenizer, "chat_template", text)
        with pytest.raises(ValueError, match=says):
            chats.make(chat_tokenizer)


LISTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
LAST = "<|im_start|>user\n{{ messages[-1]['content'] }}<|im_end|>\n"
LATER = "{% for m in messages %}{% if m['role'] != 'user' or loop.last %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            LAST,
            r"does not write turn 1 \(user\), 2 \(assistant\)\. Give the tokenizer a template that writes every turn",
        ),
        (LATER, r"does not write turn 1 \(user\)\."),
    ],
)
@pytest.mark.parametrize("system", ["", None, "Be brief."])
def test_a_template_that_leaves_out_what_was_said_is_refused(chat_tokenizer, monkeypatch, template, says, system):
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match=says):
        chats.make(chat_tokenizer, system)


@pytest.mark.parametrize(
    "refusal", ["", "{% if messages[0]['content'] is string %}{{ raise_exception('no') }}{% endif %}"]
)
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_template_that_takes_parts_is_given_texts(chat_tokenizer, monkeypatch, refusal, system):
    own = refusal + LISTS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    monkeypatch.setattr(chat_tokenizer, "chat_template", own)
    chat = chats.make(chat_tokenizer, system)
    messages = [{"role": "system", "content": system}] * bool(system)
    messages += [{"role": role, "content": text} for role, text in TURNS]
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    ids = chat_tokenizer.apply_chat_template(parts, add_generation_prompt=True, return_dict=False)
    assert chats.prompt_ids(chat, TURNS) + chats.tail_ids(chat) == ids and ids[-1] != chat.end
    assert chats.make(chat.tokenizer, system).tokenizer.chat_template == chat.tokenizer.chat_template  # of an export
    wrapped = chat_template.wrap(chat)  # which takes either
    for given in (messages, parts):
        assert (
            chat_tokenizer.apply_chat_template(
                given, chat_template=wrapped, add_generation_prompt=True, return_dict=False
            )
            == ids
        )


def test_formats_are_told_apart(chat, chat_tokenizer, monkeypatch):
    format = chats.describe(chat)
    assert chats.describe(chats.make(chat_tokenizer, system=None)) != format
    monkeypatch.setattr(chat_tokenizer, "chat_template", chat_tokenizer.chat_template.replace("asked", "begged"))
    assert chats.describe(chat) != format


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((("user", "Which tea?"),), "Which tea?"),
        ((("user", "Two\n\nparagraphs: one."),), "Two\n\nparagraphs: one."),
        ((("user", "a"), ("assistant", "b"), ("user", "c")), "Human: a\n\nAssistant: b\n\nHuman: c"),
        (
            (("user", "It says:\n\nAssistant: b"),),
            "Human: It says:\n\nAssistant: b",
        ),  # told apart from several by nothing
    ],
)
def test_what_a_person_said_is_found_in_the_transcript(turns, said):
    assert chats.is_transcript(chats.transcript(turns)) and chats.spoken(chats.transcript(turns)) == said


def test_a_text_that_is_no_transcript_stays():
    assert chats.spoken("Once upon a time") == "Once upon a time" and not chats.is_transcript("Once upon a time")
