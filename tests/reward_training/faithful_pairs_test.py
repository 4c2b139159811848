"""Unfaithful summaries: a swap changes facts and nothing else, a mismatch is another post's, splits share nothing."""

import re
from pathlib import Path

import pytest

from meal_jax.data import chat as chats
from meal_jax.data import tldr
from meal_jax.data.summarize_from_feedback import Post
from meal_jax.data.tldr import Summarised
from meal_jax.reward_training import faithful_pairs

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "reddit_tldr" / "posts.jsonl.gz"
NAMES = ("Anna", "Berlin", "Cairo", "Doris", "Essen", "Frida", "Ghana")


def post(i, subreddit="a"):
    name = NAMES[i % 7]
    text = f"I went to see {name} and paid {100 + i} dollars for {i % 3} teas."
    return Summarised(Post(f"t3_{i:03}", "", subreddit, text), f"Saw {name}, paid {100 + i} to {name} in 1999.")


POSTS = [post(i, "ab"[i % 2]) for i in range(80)]


def facts_of(text):
    return re.findall(r"\d+|[A-Z][a-z]+", text)


def test_a_swap_changes_facts_of_the_post_and_only_those():
    pairs = faithful_pairs.make_pairs(POSTS)
    swapped = [(words, bad) for words, bad, kind in pairs if kind == faithful_pairs.SWAPPED]
    assert len(swapped) == len(POSTS)
    for words, bad in swapped:
        before, after = facts_of(words.summary), facts_of(bad)

        def blank(text):
            return re.sub(r"\d+|[A-Z][a-z]+", "_", text)

        assert blank(bad) == blank(words.summary)
        assert (
            after[0] == before[0] == "Saw" and after[-1] == before[-1] == "1999"
        )  # a sentence's start; not in the post
        new = [b for a, b in zip(before, after, strict=True) if a != b]
        assert len(new) == 3 and new[0] == new[2] and not any(fact in words.post.post for fact in new)


def test_a_fact_is_swapped_for_one_that_is_new_and_alike():
    words = Summarised(Post("t3_x", "Rome", "", "we, Eva and I, met 12 in 2.5 days"), "so Eva met 12, and Eva ran 2.5")
    assert (
        faithful_pairs.swap(words.summary, words, faithful_pairs.NUMBER, ["12", "2.5"]) == words.summary
    )  # none is new
    assert (
        faithful_pairs.swap(words.summary, words, faithful_pairs.NUMBER, ["12", "7"]) == "so Eva met 7, and Eva ran 7"
    )
    assert (
        faithful_pairs.swap(words.summary, words, faithful_pairs.NAME, ["Eva", "Rome"]) == words.summary
    )  # the title has Rome
    assert (
        faithful_pairs.swap(words.summary, words, faithful_pairs.NAME, ["Otto"]) == "so Otto met 12, and Otto ran 2.5"
    )
    assert faithful_pairs.swap("I'm 12th of 3a", words, faithful_pairs.NUMBER, ["7"]) == "I'm 12th of 3a"


def test_a_mismatch_is_never_a_posts_own_summary_and_of_its_split():
    twins = [t._replace(post=t.post._replace(id=t.post.id + "b")) for t in POSTS[:10]]  # published twice
    twins += [t._replace(post=t.post._replace(id=t.post.id + "b"), summary=f"again {t.summary}") for t in POSTS[10:40]]
    posts = POSTS + twins
    owner = {}
    for t in posts:
        owner.setdefault(t.summary, []).append(t)
    visited, subreddits = 0, 0
    for words, bad, kind in faithful_pairs.make_pairs(posts):
        if kind == faithful_pairs.MISMATCHED:
            assert (
                bad != words.summary
                and words not in owner[bad]
                and all(words.post.post != o.post.post for o in owner[bad])
            )
            assert faithful_pairs.split_of(words) in {faithful_pairs.split_of(o) for o in owner[bad]}
            visited, subreddits = visited + 1, subreddits + (owner[bad][0].post.subreddit == words.post.subreddit)
    assert visited == len(posts) and subreddits > 0.8 * visited
    assert not faithful_pairs.make_pairs([POSTS[0]._replace(summary="the same")])


def test_no_fact_crosses_splits_and_the_order_of_posts_does_not_matter():
    pairs = faithful_pairs.make_pairs(POSTS)
    assert pairs == faithful_pairs.make_pairs(POSTS[::-1])
    assert {faithful_pairs.split_of(words) for words, *_ in pairs[:60]} == set(
        chats.SPLITS
    )  # the first so many are of all splits
    by_split = {}
    for words, bad, _ in pairs:
        by_split.setdefault(faithful_pairs.split_of(words), []).append((words, bad))
    assert set(by_split) == {"reward", "policy", "eval"}
    for split, own in by_split.items():
        numbers = {n for words, _ in own for n in re.findall(r"\d+", words.summary)}
        assert all(set(re.findall(r"\d+", bad)) <= numbers for _, bad in own), split


@pytest.mark.skipif(not REAL.is_file(), reason="real posts are not at ../shared/data/reddit_tldr")
def test_real_posts():
    words = tldr.read_summarised(REAL)
    assert len(words) > 14_000 and words == sorted(words)
    pairs = faithful_pairs.make_pairs(words[:2000])
    kinds = [kind for *_, kind in pairs]
    assert kinds.count(faithful_pairs.MISMATCHED) == 2000 and kinds.count(faithful_pairs.SWAPPED) > 300
    assert all(bad != t.summary for t, bad, _ in pairs)
