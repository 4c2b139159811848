"""Pairs for reward heads: each kind's source, what is left out, and that held-out posts are those of the benchmark."""

import json
from types import SimpleNamespace

import pytest

from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.reward_training import faithful_pairs, head_pairs

POST = "I met Anna in 2014 and we have been friends ever since then. " * 2


def comparison(i, choice=0, post=POST, policies=("sup4", "ppo"), summaries=(" first ", "second")):
    return {
        "info": {"id": f"t3_{i:02}", "post": f"{i}\n{post}", "title": "", "subreddit": "x"}, "split": "train", "batch": "",
        "summaries": [{"text": text, "policy": p} for text, p in zip(summaries, policies, strict=True)], "choice": choice,
    }  # fmt: skip


def told(i, summary=None):
    return {"id": f"t3_{i:02}", "post": f"{i} {POST}", "summary": summary or f"so Anna met {i} friends in 2014."}


@pytest.fixture
def data(tmp_path):
    write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))  # noqa: E731
    (tmp_path / "sff").mkdir()
    article = comparison(6)
    article["info"] = {"id": "news", "article": "x", "site": "y"}
    rows = [
        article,
        comparison(1),
        comparison(2, choice=1),
        comparison(3, summaries=("same", " same")),
        comparison(4, post="short"),
    ]
    write("sff/a.jsonl", [*rows, comparison(5, policies=("ppo", "ref"), summaries=("x", " Mine. "))])
    write("posts.jsonl", [told(i) for i in range(20)] + [told(20) | {"post": "short"}, told(0), told(21, " ")])
    return SimpleNamespace(path=str(tmp_path / "sff"), posts=str(tmp_path / "posts.jsonl"))


def test_comparisons_in_the_benchmarks_prompts(data):
    found = head_pairs.read("comparisons", data)
    assert [(p.group, p.chosen, p.rejected) for p in found.pairs[:2]] == [
        ("t3_01", "first", "second"), ("t3_02", "second", "first"),
    ]  # fmt: skip
    assert found.pairs[0].turns == (("user", f"{templates.INSTRUCTION}\n\n1 {POST}"),)
    assert found.pairs[2].turns == (("user", f"{templates.INSTRUCTION}\n\n4 short"),)
    assert found.left_out == {"the same answer twice": 1, "a news article": 1}


def test_faithful_pairs_have_the_authors_summary_first(data):
    found = head_pairs.read("faithful", data)
    assert found.left_out == {"a post of another length": 1}
    own = {f"t3_{i:02}": f"so Anna met {i} friends in 2014." for i in range(20)}
    assert {p.group for p in found.pairs if p.kind == faithful_pairs.MISMATCHED} == set(own)
    assert all(p.chosen == own[p.group] != p.rejected for p in found.pairs)
    swapped = [p for p in found.pairs if p.kind == faithful_pairs.SWAPPED]
    assert swapped and all(
        "2014" not in p.rejected or p.rejected.split("met ")[1] != p.chosen.split("met ")[1] for p in swapped
    )


def test_without_posts_authors_summaries_are_those_of_the_comparisons(data):
    data.posts = ""
    found = head_pairs.read("faithful", data)
    assert not found.pairs  # one post alone has nothing to be mismatched with
    (post,) = head_pairs.tldr.of_comparisons(head_pairs.sff.read(data.path))
    assert (post.post.id, post.summary) == ("t3_05", "Mine.")


def test_a_post_is_in_one_split_whatever_the_kind_of_pairs(data):
    ids = {p.group for kind in ("comparisons", "faithful") for p in head_pairs.read(kind, data).pairs}
    splits = {name: chats.split_of((("user", name),)) for name in ids}
    assert set(splits.values()) == {"reward", "policy", "eval"}
    for pair in head_pairs.read("faithful", data).pairs:
        if pair.kind == faithful_pairs.MISMATCHED:
            other = f"t3_{int(pair.rejected.split('met ')[1].split()[0]):02}"
            assert splits[other] == splits[pair.group]


def test_other_kinds_are_refused_with_what_there_is(data):
    for source in ("harmless-base", "hh_rlhf", "comparisons:x"):
        with pytest.raises(ValueError, match=f"{source!r}, which is none of hh_rlhf:FOLDER, comparisons, faithful"):
            head_pairs.read(source, data)
