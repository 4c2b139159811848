"""The characters of responses inside the jitted step, for rewards that count in text without leaving the device.

Tokens cut words anywhere ("happ", "y"), so what a person counts in a text is counted here in its characters, whatever the
tokens. Every character is its ASCII code; all others are OTHER. A reward made of these equals the same count over the text.

Letters: B prompts, N candidates, T response tokens, V vocabulary, W characters of the longest token, C = T · W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

OTHER = 127  # DEL, which no text holds
QUOTE = ord('"')


def spellings(tokenizer: Any, vocabulary: int) -> np.ndarray:
    """What each token adds to a text: [V, W] uint8, filled with 0; nothing for special tokens.

    Part of a character that several tokens share, as byte-level tokenizers have them, counts as one character each.
    """
    anchor = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a"))  # a token at the start may lose its space
    before = tokenizer.decode(anchor)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )
    texts = [
        "" if i in special or i >= len(tokenizer) else tokenizer.decode([*anchor, i])[len(before) :]
        for i in range(vocabulary)
    ]
    table = np.zeros((vocabulary, max(map(len, texts))), np.uint8)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = [ord(character) if ord(character) < OTHER else OTHER for character in text]
    return table


def spell(tokens: jax.Array, mask: jax.Array, table: jax.Array) -> jax.Array:
    """Responses [B, N, T] as characters [B, N, C], one after the other from the left, filled with 0."""
    pieces = jnp.where(mask[..., None], table[tokens], 0)  # [B, N, T, W]
    real = pieces > 0
    flat = real.reshape(*tokens.shape[:2], -1)
    size = flat.shape[-1]
    place = jnp.where(flat, jnp.cumsum(flat, axis=-1) - 1, size)  # those past the end are dropped

    def put(place, values):
        return jnp.zeros(size, values.dtype).at[place].set(values, mode="drop")

    return jax.vmap(jax.vmap(put))(place, pieces.reshape(flat.shape))


def printed(text: jax.Array) -> jax.Array:
    """Which characters [..., C] are neither space, line end nor filling."""
    return text > ord(" ")


def spoken(text: jax.Array) -> jax.Array:
    """Which characters [..., C] are speech: from a quotation mark to the next, both with it, or to the end."""
    mark = text == QUOTE
    return mark | (jnp.cumsum(mark, axis=-1) % 2 == 1)


def letters(text: jax.Array) -> jax.Array:
    """Which characters [..., C] are of words: A–Z, a–z and the apostrophe."""
    lower = text | 32
    return ((lower >= ord("a")) & (lower <= ord("z"))) | (text == ord("'"))


def first_letters(text: jax.Array) -> jax.Array:
    """Where words begin, [..., C] bool."""
    word = letters(text)
    return word & ~jnp.pad(word, [(0, 0)] * (text.ndim - 1) + [(1, 0)])[..., :-1]


def begins_word(text: jax.Array, word: str) -> jax.Array:
    """Where this word, whole and in any case, begins: [..., C] bool. `word` is of lower-case letters a–z."""
    size, room = text.shape[-1], len(word) + 1
    padded = jnp.pad(text, [(0, 0)] * (text.ndim - 1) + [(0, room)])

    def shifted(j: int) -> jax.Array:
        return padded[..., j : j + size]

    same = first_letters(text) & ~letters(shifted(len(word)))
    for j, letter in enumerate(word):
        same &= (shifted(j) | 32) == ord(letter)
    return same


def share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Counts [...] to a share in [0, 1]; 0 where there is nothing."""
    return part / jnp.maximum(whole, 1)


def count(selected: jax.Array) -> jax.Array:
    """True entries along the last axis, float32."""
    return jnp.sum(selected, axis=-1, dtype=jnp.float32)


def any_word(text: jax.Array, words: Sequence[str]) -> jax.Array:
    """Where one of the words begins, [..., C] bool."""
    begins = jnp.zeros(text.shape, bool)
    for word in words:
        begins |= begins_word(text, word)
    return begins
