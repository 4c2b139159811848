"""Cuts answers at the texts of `config.data.stop` inside the jitted step, for rewards that the device computes.

Rewards of text are cut as text (`data.templates.cut`). Here the same place is found among tokens: an automaton reads the
characters of an answer and its state after a token depends on the state before it and the token alone, so a table of states
and tokens finds every stop text exactly, wherever token borders lie. The answer's mask then ends with the last token that has
a character other than white space before the stop text; if the stop text begins inside that token, the token stays whole.

Letters: B prompts, N candidates, T response tokens, V vocabulary, M characters of a stop text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meal_jax.rollout.decode import Responses

Table = dict[str, np.ndarray]
FAR = np.int16(np.iinfo(np.int16).max)


def pieces(tokenizer: Any, vocabulary: int) -> list[str]:
    """The text that each id adds to an answer, V strings: "" for special tokens and for ids without a token."""
    known = set(tokenizer.get_vocab().values())
    before = tokenizer(":", add_special_tokens=False)["input_ids"]  # at the start of a text, some drop a leading space
    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    lead = len(tokenizer.decode(before, **settings))
    texts = tokenizer.batch_decode([[*before, i] if i in known else before for i in range(vocabulary)], **settings)
    return [text[lead:] for text in texts]


def tables(tokenizer: Any, vocabulary: int, stop: Sequence[str]) -> list[Table]:
    """`table` of each stop text.

    Raises:
      ValueError: the tokenizer does not spell a stop text by the tokens' own texts.
    """
    texts = pieces(tokenizer, vocabulary)
    for mark in stop:
        context = f"a{mark} b"
        ids = tokenizer(context, add_special_tokens=False)["input_ids"]
        if "".join(texts[i] for i in ids if i < vocabulary).lstrip() != context:
            raise ValueError(
                f"config.data.stop: {mark!r} cannot be found among this tokenizer's tokens, as rewards on the device need it. "
                "Leave it out of config.data.stop, or take rewards of text (config.reward.sources)."
            )
    return [table(texts, mark) for mark in stop]


def table(texts: Sequence[str], mark: str) -> Table:
    """The automaton of one stop text over tokens.

    States 0 … M − 1 count the characters matched; M is complete; M + 1, the first one, is white space before the answer, which
    matches nothing.

    Args:
      texts: of V tokens.
      mark: the stop text, M characters.

    Returns:
      "next" [M + 2, V] state after a token; "begins" [M + 2, V] where the stop text begins that the token completes, counted
      from the token's first character; "length" [V] characters; "first" [V] of the first that is not white space.
    """
    size, complete, blank = len(mark), len(mark), len(mark) + 1
    alphabet = sorted(set(mark))
    # Knuth, Morris and Pratt: after `state` matched characters and one more, the longest beginning that they end with.
    # A class per character of the mark, then other, then white space
    step = np.zeros((size + 2, len(alphabet) + 2), np.int16)
    for state in range(size):
        for k, char in enumerate(alphabet):
            read = mark[:state] + char
            step[state, k] = next(n for n in range(state + 1, -1, -1) if read.endswith(mark[:n]))
    step[complete] = complete
    step[blank] = step[0]
    step[blank, [k for k, char in enumerate(alphabet) if char.isspace()] + [len(alphabet) + 1]] = blank
    classes = {char: k for k, char in enumerate(alphabet)}

    def class_of(char: str) -> int:
        return classes.get(char, len(alphabet) + char.isspace())

    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    lengths = np.array([len(texts[i]) for i in order])
    state = np.repeat(np.arange(size + 2, dtype=np.int16)[:, None], len(texts), axis=1)
    begins = np.full(state.shape, FAR)
    for place in range(int(lengths.max(initial=0))):
        count = int((lengths > place).sum())
        read = np.array([class_of(texts[i][place]) for i in order[:count]])
        new = step[state[:, :count], read]
        first_time = (new == complete) & (state[:, :count] != complete)
        begins[:, :count] = np.where(first_time, place + 1 - size, begins[:, :count])
        state[:, :count] = new
    back = np.argsort(order)
    first = [next((i for i, char in enumerate(text) if not char.isspace()), FAR) for text in texts]
    return {
        "next": state[:, back],
        "begins": begins[:, back],
        "length": np.array([len(text) for text in texts], np.int16),
        "first": np.array(first, np.int16),
    }


def cut(tables: Sequence[Mapping[str, jax.Array]], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """The mask [B, N, T] of answers cut at each stop text in turn; answers without one keep theirs.

    Args:
      tables: of `tables`.
      tokens: [B, N, T].
      mask: [B, N, T] bool, a prefix of each row.
    """
    for automaton in tables:
        mask = _cut_at(automaton, tokens, mask)
    return mask


def _cut_at(automaton: Mapping[str, jax.Array], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    automaton = jax.tree.map(jnp.asarray, dict(automaton))
    complete = automaton["next"].shape[0] - 2
    length = jnp.where(mask, automaton["length"][tokens].astype(jnp.int32), 0)
    place = jnp.cumsum(length, axis=-1) - length  # of each token's first character

    def step(carry, column):
        state, begin = carry
        token, real, here = column
        completed = here + automaton["begins"][state, token]
        new = jnp.where(real, automaton["next"][state, token], state)
        begin = jnp.where((new == complete) & (state != complete), completed, begin)
        return (new, begin), None

    rows = mask.shape[:-1]
    start = (jnp.full(rows, complete + 1, automaton["next"].dtype), jnp.full(rows, -1, jnp.int32))
    columns = (jnp.moveaxis(x, -1, 0) for x in (tokens, mask, place))
    (state, begin), _ = jax.lax.scan(step, start, tuple(columns))
    kept = mask & (place + automaton["first"][tokens] < begin[..., None])
    last = jnp.max(jnp.where(kept, jnp.arange(1, mask.shape[-1] + 1), 0), axis=-1)
    shorter = mask & (jnp.arange(mask.shape[-1]) < last[..., None])
    return jnp.where((state == complete)[..., None], shorter, mask)


def cutting(reward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`Setup.reward` that reads cut answers, which have ended; its parameters are {"own": the reward's, "stop": tables}."""

    def cut_first(params, batch, responses: Responses, hidden) -> jax.Array:
        mask = cut(params["stop"], responses.tokens, responses.mask)
        ended = responses.ended | jnp.any(mask != responses.mask, axis=-1)
        return reward(params["own"], batch, responses._replace(mask=mask, ended=ended), hidden)

    return cut_first
