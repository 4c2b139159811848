"""Rewards of a story's text, and its marks, by hand."""

import pytest

from meal_jax.tasks import story_text


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("He ran. She ran.", 2 / 4),
        ("He ran to her. She didn't ru", 2 / 7),  # what is cut off counts as a sentence
        ('"No!" he said... ', 2 / 3),
        ("", 0.0),
        ("?!.", 0.0),
    ],
)
def test_short_sentences(text, share):
    assert story_text.short(["Once."], [text]) == [pytest.approx(share**0.5)]


def test_marks_are_what_the_rewards_count():
    text = 'Tim was happy. "I am happy, friend!" A Smile unloved "Yes, fun'
    parts = story_text.marked(text, ("cheerful", "dialogue"))
    assert "".join(part for part, _ in parts) == text
    assert [(part, k) for part, k in parts if k is not None] == [
        ("happy", 0), ('"I am happy, friend!"', 1), ("Smile", 0), ('"Yes, fun', 1),
    ]  # fmt: skip
    assert all(k is None for part, k in story_text.marked(text, ("short", "dialogue")) if part == "happy")
