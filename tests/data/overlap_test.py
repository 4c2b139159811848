"""Sizes and overlap of training and evaluation."""

import numpy as np

from meal_jax.data import overlap
from meal_jax.data.chat import transcript
from meal_jax.data.prompts import Prompts


def test_texts_and_first_turns_that_stand_in_both_are_counted_and_explained():

    def talk(*turns):
        return transcript(tuple(zip(("user", "assistant") * len(turns), turns, strict=False)))

    test = [talk("Which tea?"), talk("A name?", "Ada.", "Another?")]
    result = overlap.between([talk("Coffee?"), talk("a  NAME?", "Eve.", "Why?"), talk("A name?")], test)
    assert result == {"training": 3, "evaluation": 2, "same_text": 0, "same_first_turn": 2, "why": overlap.WHY}
    assert "3 prompts to train on, 2 to evaluate on; in both: 0 by text, 2 by first turn (conv" in overlap.say(result)
    result = overlap.between(["a post", "b"], ["A  post"])
    assert (result["same_text"], result["same_first_turn"], result["why"]) == (1, 1, "the same prompts stand in both")
    assert overlap.between(["a"], ["b"]) == {"training": 1, "evaluation": 1, "same_text": 0, "same_first_turn": 0}


def test_prompts_without_text_are_compared_by_their_tokens():

    def rows(*values):
        return Prompts(np.array(values), np.ones((len(values), 2), bool), np.arange(len(values)))

    assert overlap.of_prompts(rows((1, 2), (3, 4)), rows((3, 4)))["same_text"] == 1
