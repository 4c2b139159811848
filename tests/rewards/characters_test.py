"""Characters counted inside the jitted step equal the same count over the text."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.hf import pretrained
from meal_jax.rewards import characters

WORDS = ("happy", "fun", "loved")


def encode(text):
    """Characters [1, 1, C] of a text, filled up with 0."""
    return jnp.asarray([[[ord(c) if ord(c) < 127 else characters.OTHER for c in text] + [0] * 5]], jnp.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrained.load_tokenizer("stories260k")


def test_tokens_spell_what_the_tokenizer_decodes(tokenizer):
    table = characters.spellings(tokenizer, 515)
    assert table.shape == (515, 7) and not table[[0, 1, 2, 512, 514]].any()
    rng = np.random.default_rng(0)
    whole = [i for i in range(3, 512) if "�" not in tokenizer.decode([i])]  # not a part of a character alone
    tokens = rng.choice(whole, (3, 4, 9)).astype(np.int32)
    mask = np.arange(9) < rng.integers(0, 10, (3, 4, 1))
    result = np.asarray(jax.jit(characters.spell)(tokens, mask, table))
    anchor = tokenizer.convert_tokens_to_ids("a")
    for index in np.ndindex(3, 4):
        text = tokenizer.decode([anchor, *tokens[index][mask[index]]])[1:]
        want = [ord(c) if ord(c) < 127 else characters.OTHER for c in text]
        assert result[index][: len(want)].tolist() == want and not result[index][len(want) :].any()


def test_a_byte_level_tokenizer_is_spelled_too(chat_tokenizer):
    table = characters.spellings(chat_tokenizer, len(chat_tokenizer))
    ids = chat_tokenizer(" please yes", add_special_tokens=False)["input_ids"]
    text = characters.spell(jnp.asarray([[ids]]), jnp.ones((1, 1, len(ids)), bool), jnp.asarray(table))
    assert bytes(np.asarray(text[0, 0])).rstrip(b"\0") == b" please yes"


def test_speech_by_hand():
    text = 'He said, "Go on." Then "Wh'
    spoken = np.asarray(characters.spoken(encode(text)))[0, 0][: len(text)]
    assert "".join(c if s else "_" for c, s in zip(text, spoken, strict=True)) == '_________"Go on."______"Wh'
    assert not characters.spoken(encode("no marks")).any()


def test_words_by_hand():
    text = "Happy, unhappy HAPPY happy's happyfun fun. FUN-loved happ"
    result = np.asarray(characters.any_word(encode(text), WORDS))[0, 0]
    assert [text[i : i + 5] for i in np.flatnonzero(result)] == ["Happy", "HAPPY", "fun. ", "FUN-l", "loved"]
    assert int(characters.count(characters.first_letters(encode(text)))[0, 0]) == len(re.findall(r"[A-Za-z']+", text))


def test_random_texts_count_as_python_counts():
    rng = np.random.default_rng(1)
    pieces = [" ", '"', "happy", "Fun", "loved", "x", "'", ".", "\n", "é", "@", "[", "`", "{"]
    texts = ["".join(rng.choice(pieces, 30)) for _ in range(40)]
    rows = jnp.concatenate([jnp.pad(encode(t), ((0, 0), (0, 0), (0, 160 - len(t)))) for t in texts], axis=1)
    words, speech, display = jax.jit(
        lambda rows: (
            characters.count(characters.any_word(rows, WORDS)),
            characters.count(characters.printed(rows) & characters.spoken(rows)),
            characters.count(characters.printed(rows)),
        )
    )(rows)
    for i, text in enumerate(texts):
        assert words[0, i] == len([w for w in re.findall(r"[a-z']+", text.lower()) if w in WORDS]), text
        spoken = "".join(re.findall(r'"[^"]*(?:"|$)', text))
        assert speech[0, i] == len(re.sub(r"\s", "", spoken)) and display[0, i] == len(re.sub(r"\s", "", text)), text
