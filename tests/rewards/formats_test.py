"""What reward models read: every layout by hand on small tokenizers, and as the published code writes it on the real ones."""

import copy
from pathlib import Path

import pytest

from meal_jax.hf import pretrained
from meal_jax.rewards import formats

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
WORDS = "a b c d e f g h q r s t".split()


def small(pairs: bool):
    """A tokenizer of single words, ids from 4 on; with `pairs`, BERT's special tokens around them."""
    import tokenizers
    import transformers
    from tokenizers import models, pre_tokenizers, processors

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        model_max_length=600,
    )  # fmt: skip


def ids(words):
    return [4 + WORDS.index(word) for word in words.split()]


def test_layouts_by_hand():
    plain, special = small(False), small(True)
    assert formats.plain(plain, "a b", "q r", 9) == (ids("a b q r"), [0] * 4)
    assert formats.plain(special, "a b", "q r", 9) == (ids("a b q r"), [0] * 4)  # nothing around it, no end token
    assert formats.response_only(special, "a b", "q r", 9) == ([1, *ids("q r"), 2], [0] * 4)
    assert formats.response_bos_post(plain, "a b", "q r", 9) == ([*ids("q r"), 1, *ids("a b")], [0] * 5)
    assert formats.response_pair(special, "a b", "q", 9) == ([1, *ids("q"), 2, *ids("a b"), 2], [0, 0, 0, 1, 1, 1])
    assert formats.prompt_pair(special, "a b", "q", 9) == ([1, *ids("a b"), 2, *ids("q"), 2], [0, 0, 0, 0, 1, 1])


def test_begin_stands_between_response_and_post_as_in_a_joined_text(chat_tokenizer):
    """Byte-level tokens, to which spaces matter: the ids of response + " " + begin + " " + post."""
    joined = f"thank you {chat_tokenizer.bos_token} please  yes"
    expected = chat_tokenizer(joined, add_special_tokens=False)["input_ids"]
    assert formats.response_bos_post(chat_tokenizer, "please  yes", "thank you", 99).ids == expected
    assert formats.response_bos_post(chat_tokenizer, "please  yes", "thank you", 5).ids == expected[:5]


def cut(first, second, room):
    """The published rule written out: the longer part loses its last token until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


@pytest.mark.parametrize("room", [3, 4, 5, 6, 9, 12])
def test_what_is_too_long_is_cut_as_published(room):
    plain, special = small(False), small(True)
    prompt, response = "a b c d e f g h", "q r s t"
    first, second = cut(ids(prompt), ids(response), room)
    whole = formats.plain(plain, prompt, response, room).ids
    assert abs(whole.index(ids("q")[0]) - len(first)) <= (len(first) == len(second))  # a tie may go either way
    assert len(whole) == room and formats.prompt_pair(special, prompt, response, room + 3).ids == [
        1, *whole[: whole.index(ids("q")[0])], 2, *whole[whole.index(ids("q")[0]) :], 2
    ]  # fmt: skip
    assert formats.response_only(special, prompt, response, room).ids == [1, *ids(response)[: room - 2], 2]
    backwards = [*ids(response), 1, *ids(prompt)]
    assert formats.response_bos_post(plain, prompt, response, room).ids == backwards[:room]


def test_the_least_limit_holds():
    tokenizer = small(True)
    assert formats.limit(tokenizer, 512) == 512 and formats.limit(tokenizer) == 600
    tokenizer.model_max_length = int(1e30)  # what transformers says where no file names a limit
    assert formats.limit(tokenizer, 4096) == 1024 == formats.limit(tokenizer)


def test_the_table_is_the_published_one():
    read = {name: (p.source, p.layout.__name__, p.label) for name, p in formats.PRESETS.items()}
    assert read == {
        "harmless": ("Ray2333/gpt2-large-harmless-reward_model", "plain", 0),
        "helpful": ("Ray2333/gpt2-large-helpful-reward_model", "plain", 0),
        "humor": ("mohameddhiab/humor-no-humor", "response_only", 1),
        "summary": ("Tristan/gpt2_reward_summarization", "response_bos_post", 0),
        "faithful": ("CogComp/bart-faithful-summary-detector", "response_pair", 1),
        "deberta": ("OpenAssistant/reward-model-deberta-v3-large-v2", "prompt_pair", 0),
    }


@pytest.mark.parametrize("special", [False, True])
def test_an_added_word_without_a_row_of_the_embedding_is_refused_and_a_special_one_is_not(chat_tokenizer, special):
    tokenizer, rows = copy.deepcopy(chat_tokenizer), len(chat_tokenizer)
    tokenizer.add_tokens(["sourdough"], special_tokens=special)
    if special:  # no text of a prompt or an answer holds it
        formats.need_rows(tokenizer, rows, "here")
    else:
        with pytest.raises(ValueError, match=f"here: .* token 'sourdough' of id {rows}, and .* {rows} rows"):
            formats.need_rows(tokenizer, rows, "here")


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("humor", {0: "HUMOR", 1: "NO_HUMOR"}), ("humor", {0: "funny", 1: "other"}), ("humor", {0: "a", 1: "Not funny"}),
        ("humor", {0: "x", 1: "serious"}), ("faithful", {0: "FAITHFUL", 1: "HALLUCINATED"}),
        ("faithful", {0: "a", 1: "unfaithful"}), ("faithful", {0: "Consistent", 1: "LABEL_1"}),
        ("faithful", {0: "consistent", 1: "inconsistent"}), ("harmless", {0: "harmful"}), ("harmless", {0: "unsafe"}),
        ("harmless", {0: "harmful", 1: "harmless"}), ("helpful", {0: "unhelpful"}), ("summary", {0: "rejected"}),
        ("deberta", {0: "bad", 1: "good"}),
    ],
)  # fmt: skip
def test_a_label_whose_name_contradicts_the_preset_is_refused(preset, names):
    label = formats.PRESETS[preset].label
    with pytest.raises(ValueError, match=f"id2label says .*{label} '{names[label]}'.*'{preset}' reads label {label},"):
        formats.need_label(formats.PRESETS[preset], names, preset, f"{preset}@here")


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("humor", {0: "NO_HUMOR", 1: "HUMOR"}), ("humor", {0: "LABEL_0", 1: "LABEL_1"}), ("humor", {}),
        ("humor", {0: "not funny", 1: "funny"}), ("faithful", {0: "HALLUCINATED", 1: "FAITHFUL"}),
        ("harmless", {0: "LABEL_0"}), ("harmless", {0: "harmless", 1: "harmful"}), ("helpful", {0: "reward"}),
        ("summary", {0: "good", 1: "bad"}), ("deberta", {0: "LABEL_0"}),
    ],
)  # fmt: skip
def test_a_label_of_another_name_is_read(preset, names):
    formats.need_label(formats.PRESETS[preset], names, preset, f"{preset}@here")


def test_names_of_labels_are_read_from_config_json(tmp_path):
    (tmp_path / "config.json").write_text('{"id2label": {"0": "NO_HUMOR", "1": " HUMOR"}}')
    assert formats.label_names(tmp_path) == {0: "NO_HUMOR", 1: "HUMOR"}
    (tmp_path / "config.json").write_text("{}")
    assert formats.label_names(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"id2label": {"a": "HUMOR"}}')
    with pytest.raises(ValueError, match="id2label is"):
        formats.label_names(tmp_path)


PROMPT = "\n\nHuman: Which tea?\n\nAssistant: Green, or black? \n\nHuman: Green, don't you think? \n\nAssistant:"
RESPONSE = "Sencha  then, no?"
AS_PUBLISHED = {  # the calls of the published evaluation, one a model
    "harmless": ("gpt2", lambda tok, q, r, n: tok(q, r, truncation=True, max_length=n)),
    "humor": ("bert-base-uncased", lambda tok, q, r, n: tok(r, truncation=True, max_length=n)),
    "summary": ("gpt2", lambda tok, q, r, n: tok(r + " " + tok.bos_token + " " + q, truncation=True, max_length=n)),
    "faithful": ("bart-roberta-derived", lambda tok, q, r, n: tok(text=r, text_pair=q, truncation=True, max_length=n)),
    "deberta": ("deberta-v3", lambda tok, q, r, n: tok(q, r, truncation=True, max_length=n)),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the published tokenizers are not at ../shared/data/tokenizers")
def test_deberta_reads_what_its_file_normalises():
    """transformers 5 drops the normaliser of tokenizer.json: these were unknown tokens."""
    tokenizer = pretrained.load_tokenizer(REAL / "deberta-v3")
    assert "Precompiled" in repr(tokenizer.backend_tokenizer.normalizer)
    for text, plain in (
        ("well… yes", "well... yes"),
        ("a\u00a0b", "a b"),
        ("\ufb01ne", "fine"),
        ("a  b\n\nc ", "a b c"),
    ):
        ids = formats.prompt_pair(tokenizer, text, text, 64).ids
        assert ids == formats.prompt_pair(tokenizer, plain, plain, 64).ids and tokenizer.unk_token_id not in ids


@pytest.mark.skipif(not REAL.is_dir(), reason="the published tokenizers are not at ../shared/data/tokenizers")
@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_real_tokenizers_give_the_published_ids(name):
    folder, published = AS_PUBLISHED[name]
    tokenizer = pretrained.load_tokenizer(REAL / folder)
    layout, maximum = formats.PRESETS[name].layout, formats.limit(tokenizer)
    assert maximum == (512 if folder in ("bert-base-uncased", "deberta-v3") else 1024)
    long = "A post of many words, and then some. " * 200
    for prompt, response in ((PROMPT, RESPONSE), (long, RESPONSE), (PROMPT, long), (long, long), (PROMPT, "")):
        expected = published(tokenizer, prompt, response, maximum)
        row = layout(tokenizer, prompt, response, maximum)
        assert row.ids == expected["input_ids"] and row.types == expected.get("token_type_ids", [0] * len(row.ids))
        assert len(row.ids) <= maximum and (
            tokenizer.eos_token_id not in row.ids[-1:] or name in ("faithful", "deberta")
        )
        assert (len(row.ids) == maximum) == (len(response if name == "humor" else prompt + response) > 5000)
