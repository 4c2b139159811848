"""Prompts of the two benchmarks: their text, one begin token, lengths under every tokenizer, and the evaluation set's hash."""

import copy
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from meal_jax.data import chat as chats
from meal_jax.data import summarize_from_feedback as sff
from meal_jax.data import templates
from meal_jax.data.summarize_from_feedback import Post

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TURNS = (("user", "Which tea?"), ("assistant", "Green?"), ("user", "Yes. Choose one person"))
POST = (("user", "My post: choose one person"),)
# The published code strips the characters of "### Response:" and of "<s>" off the ends of texts, which eats words like these.
EATEN = ("cats", "response person # :", "</s", "pons e:")


@pytest.fixture(scope="module")
def metaspace():
    """A tokenizer of Llama's kind: "▁" for spaces and before a text, begin and end tokens, no chat template."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    alphabet = [*map(chr, range(33, 127)), "▁", "\n", "é", "…"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(["### Instruction: ### Input: ### Response: Human: Assistant: the tea"] * 8, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="module", params=["metaspace", "byte level"])
def tokenizer(request, metaspace, chat_tokenizer):
    return metaspace if request.param == "metaspace" else chat_tokenizer


def whole(chat, turns, answer=None):
    ids = chats.prompt_ids(chat, turns) + chats.tail_ids(chat)
    return ids if answer is None else ids + chats.response_ids(chat, answer)


def decoded(chat, ids):
    """Text of ids, without the begin and end tokens and the space that metaspace puts first."""
    text = chat.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for token in (chat.tokenizer.bos_token, chat.tokenizer.eos_token):
        text = text.replace(token, "")
    return text.removeprefix(" ")


def test_the_assistants_plain_prompt(tokenizer):
    chat = templates.make_chat(tokenizer, "plain", "assistant")
    assert decoded(chat, whole(chat, TURNS)) == chats.transcript(TURNS)
    assert chats.transcript(TURNS) == (
        "\n\nHuman: Which tea?\n\nAssistant: Green?\n\nHuman: Yes. Choose one person \n\nAssistant:"
    )


def test_reddits_plain_prompt(tokenizer):
    chat = templates.make_chat(tokenizer, "plain", "reddit")
    want = "### Instruction: Generate a one-sentence summary of this post. ### Input: My post: choose one person ### Response:"
    assert decoded(chat, whole(chat, POST)) == want == templates.reddit_prompt("My post: choose one person")


@pytest.mark.parametrize("benchmark", ["assistant", "reddit"])
def test_a_plain_prompt_begins_once_and_an_answer_ends_once(tokenizer, benchmark):
    chat, turns = templates.make_chat(tokenizer, "plain", benchmark), TURNS if benchmark == "assistant" else POST
    prompt, ids = whole(chat, turns), whole(chat, turns, "Tea.")
    assert prompt[0] == tokenizer.bos_token_id and prompt.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == chat.end == tokenizer.eos_token_id and ids.count(chat.end) == 1
    assert ids[: len(prompt)] == prompt  # the answer changes no token of the prompt: masks can come from ids
    assert decoded(chat, ids) == decoded(chat, prompt) + " Tea."
    assert len(chats.response_ids(chat, "Tea.", limit=1)) == 1
    assert tokenizer.chat_template != chat.tokenizer.chat_template == templates.PLAIN[benchmark]


@pytest.mark.parametrize("text", EATEN)
def test_no_word_is_eaten(tokenizer, text):
    reddit = templates.make_chat(tokenizer, "plain", "reddit")
    (row,) = templates.reddit_rows([Post("t3_a", "", "", "A line.\n" * 15 + text)], "plain")
    assert row.text.endswith(" " + text) and f"{text} ### Response:" in decoded(reddit, whole(reddit, row.turns))
    assert decoded(reddit, chats.response_ids(reddit, text)) == text  # `decoded` drops the space that leads it
    assistant = templates.make_chat(tokenizer, "plain", "assistant")
    assert f"{text} \n\nAssistant:" in decoded(assistant, whole(assistant, (("user", text),)))


def test_the_chat_template_gets_the_instruction(chat_tokenizer):
    chat = templates.make_chat(chat_tokenizer, "chat", "reddit")
    (row,) = templates.reddit_rows([Post("t3_a", "", "", "Word\n" * 40)], "chat")
    assert chat.tokenizer.decode(whole(chat, row.turns)) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nGenerate a one-sentence summary of this post.\n\n"
        f"{'Word ' * 40}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert row.text == "Word " * 40 and chat.lead == ""


def test_unusable_templates_are_refused(metaspace, chat_tokenizer):
    with pytest.raises(ValueError, match=r"data\.template='alpaca' is not one of chat, plain"):
        templates.make_chat(chat_tokenizer, "alpaca", "reddit")
    with pytest.raises(ValueError, match="no chat template"):
        templates.make_chat(metaspace, "chat", "reddit")
    endless = copy.deepcopy(chat_tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="has none"):
        templates.make_chat(endless, "plain", "reddit")


def test_posts_are_filtered_deduplicated_and_sorted():
    sizes = {"t3_d": 100, "t3_c": 101, "t3_b": 1199, "t3_a": 1200}
    posts = [Post(name, "", "", "x" * size) for name, size in sizes.items()]
    rows = templates.reddit_rows([*posts, Post("t3_c", "", "", "y" * 500)], "plain")
    assert [(row.name, len(row.text), row.text[0]) for row in rows] == [("t3_b", 1199, "x"), ("t3_c", 101, "x")]


def test_conversations_count_once():
    rows = templates.assistant_rows([TURNS, TURNS[:1], TURNS])
    assert [row.turns for row in rows] == [TURNS, TURNS[:1]] and rows[0].text == chats.transcript(TURNS)


def test_lengths_hold_under_every_tokenizer(chat_tokenizer):
    class Words:  # a tokenizer that counts words
        def __call__(self, texts, add_special_tokens, verbose):
            assert not add_special_tokens
            return {"input_ids": [text.split() for text in texts]}

    class Letters(Words):
        def __call__(self, texts, **options):
            return {"input_ids": [list(text) for text in texts]}

    texts = ["a " * 7, "a " * 8, "a " * 256, "a " * 257, "b" * 8]
    rows = [templates.Row(str(i), (("user", text),), text) for i, text in enumerate(texts)]
    remaining, out = templates.within(rows, lambda row: row.text, {"words": Words(), "letters": Letters()})
    assert [row.name for row in remaining] == ["1", "2"] and out == {"words": 2, "letters": 1}
    remaining, _ = templates.within(rows, lambda row: row.text, {"letters": Letters()})
    assert [row.name for row in remaining] == ["0", "1", "2", "4"]
    assert templates.within([], lambda row: row.text, {"words": Words()}) == ([], {"words": 0})


def test_rows_become_prompts_with_their_texts(chat_tokenizer):
    chat = templates.make_chat(chat_tokenizer, "chat", "assistant")
    rows = templates.assistant_rows([TURNS[:1], TURNS, (("user", "yes " * 90),)])
    prompts, remaining = templates.encode_rows(chat, rows, 100)
    assert remaining == rows[:2] and prompts.text == tuple(row.text for row in remaining)
    assert prompts.id.tolist() == chats.encode_prompts(chat, [TURNS[:1], TURNS], 100)[0].id.tolist()
    assert prompts.tokens[1][prompts.mask[1]].tolist() == chats.prompt_ids(chat, TURNS)


def test_of_two_rows_with_one_id_the_first_stays(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(chats, "hash_of", lambda name: 7)
    chat = templates.make_chat(chat_tokenizer, "chat", "assistant")
    prompts, remaining = templates.encode_rows(chat, templates.assistant_rows([TURNS[:1], TURNS]), 100)
    assert prompts.id.tolist() == [7] and [row.turns for row in remaining] == [TURNS[:1]]


def test_the_evaluation_set_is_named_by_its_rows():
    first = templates.evaluation_set("name", [3, 5], ["a\nb", "é"])
    want = hashlib.sha256(b'["3", "a\\nb"]\n["5", "\\u00e9"]\n').hexdigest()
    assert first == {"name": "name", "sha256": want, "prompts": 2}
    others = [([3, 5], ["a\nb", "e"]), ([3, 6], ["a\nb", "é"]), ([5, 3], ["é", "a\nb"]), ([3], ["a\nb"])]
    assert len({templates.evaluation_set("name", *rows)["sha256"] for rows in others} | {want}) == 5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published rows and tokenizers are not at ../shared/data")
def test_real_posts_under_the_tokenizers_of_the_benchmark():
    import transformers

    names = ("gpt2", "bert-base-uncased")
    tokenizers = {n: transformers.AutoTokenizer.from_pretrained(SHARED / "tokenizers" / n) for n in names}
    rows = templates.reddit_rows(sff.posts(sff.read_comparisons(SHARED / "summarize_from_feedback")), "plain")
    assert all(100 < len(row.text) < 1200 and "\n" not in row.text for row in rows)
    remaining, out = templates.within(rows, lambda row: templates.reddit_prompt(row.text), tokenizers)
    assert 300 < len(remaining) <= len(rows) and set(out) == set(names)
    gpt2 = tokenizers["gpt2"]
    gpt2.pad_token = gpt2.eos_token
    chat = templates.make_chat(gpt2, "plain", "reddit")
    prompts, _ = templates.encode_rows(chat, remaining[:50], 512)
    text = gpt2.decode(prompts.tokens[0][prompts.mask[0]])
    assert re.fullmatch(r"<\|endoftext\|>### Instruction: .* ### Input: .*", text)
    assert np.all(prompts.mask[:, -1])
