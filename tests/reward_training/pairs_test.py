"""Pairs that rewards are fitted on: each kind's source, what is left out, splits as in the benchmarks, and batches."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from meal_jax.data import chat as chats
from meal_jax.data import templates
from meal_jax.reward_training import faithful_pairs, pairs
from meal_jax.rewards import formats

POST = "I met Anna in 2014 and we have been friends ever since then. " * 2


def comparison(i, choice=0, post=POST, policies=("sup4", "ppo"), summaries=(" first ", "second")):
    return {
        "info": {"id": f"t3_{i:02}", "post": f"{i}\n{post}", "title": "", "subreddit": "x"}, "split": "train", "batch": "",
        "summaries": [{"text": text, "policy": p} for text, p in zip(summaries, policies, strict=True)], "choice": choice,
    }  # fmt: skip


def summary_row(i, summary=None):
    return {"id": f"t3_{i:02}", "post": f"{i} {POST}", "summary": summary or f"so Anna met {i} friends in 2014."}


@pytest.fixture
def data(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

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
    write(
        "posts.jsonl",
        [summary_row(i) for i in range(20)]
        + [summary_row(20) | {"post": "short"}, summary_row(0), summary_row(21, " ")],
    )
    return SimpleNamespace(path=str(tmp_path / "sff"), posts=str(tmp_path / "posts.jsonl"))


def test_comparisons_in_the_benchmarks_prompts(data):
    result = pairs.read_objective_pairs("comparisons", data)
    assert [(p.group, p.chosen, p.rejected) for p in result.pairs[:2]] == [
        ("t3_01", "first", "second"), ("t3_02", "second", "first"),
    ]  # fmt: skip
    assert result.pairs[0].prompt == (("user", f"{templates.INSTRUCTION}\n\n1 {POST}"),)
    assert result.pairs[2].prompt == (("user", f"{templates.INSTRUCTION}\n\n4 short"),)
    assert result.left_out == {"the same answer twice": 1, "a news article": 1}


def test_faithful_pairs_have_the_authors_summary_first(data):
    result = pairs.read_objective_pairs("faithful", data)
    assert result.left_out == {"a post of another length": 1}
    own = {f"t3_{i:02}": f"so Anna met {i} friends in 2014." for i in range(20)}
    assert {p.group for p in result.pairs if p.kind == faithful_pairs.MISMATCHED} == set(own)
    assert all(p.chosen == own[p.group] != p.rejected for p in result.pairs)
    swapped = [p for p in result.pairs if p.kind == faithful_pairs.SWAPPED]
    assert swapped and all(
        "2014" not in p.rejected or p.rejected.split("met ")[1] != p.chosen.split("met ")[1] for p in swapped
    )


def test_without_posts_authors_summaries_are_those_of_the_comparisons(data):
    data.posts = ""
    result = pairs.read_objective_pairs("faithful", data)
    assert not result.pairs  # one post alone has nothing to be mismatched with
    (post,) = pairs.tldr.of_comparisons(pairs.sff.read_comparisons(data.path))
    assert (post.post.id, post.summary) == ("t3_05", "Mine.")


def test_a_post_is_in_one_split_whatever_the_kind_of_pairs(data):
    ids = {p.group for kind in ("comparisons", "faithful") for p in pairs.read_objective_pairs(kind, data).pairs}
    splits = {name: chats.split_of((("user", name),)) for name in ids}
    assert set(splits.values()) == {"reward", "policy", "eval"}
    for pair in pairs.read_objective_pairs("faithful", data).pairs:
        if pair.kind == faithful_pairs.MISMATCHED:
            other = f"t3_{int(pair.rejected.split('met ')[1].split()[0]):02}"
            assert splits[other] == splits[pair.group]


def test_other_kinds_are_refused_with_what_there_is(data):
    for source in ("harmless-base", "hh_rlhf", "comparisons:x"):
        with pytest.raises(
            ValueError, match=f"{source!r}, which is none of hh_rlhf:FOLDER, own:FILE, comparisons, faithful"
        ):
            pairs.read_objective_pairs(source, data)


def pair(group, prompt=None):
    return pairs.Pair(group, prompt or f"p {group}", "a", "b")


def test_no_prompt_is_in_both_parts():
    rows = [pair(f"turn {i % 50}", f"turn {i % 50}, then {i}") for i in range(200)]
    fitted, held = pairs.divide(rows, 0.3)
    assert len(fitted) + len(held) == 200 and 30 < len(held) < 90
    assert not {p.group for p in fitted} & {p.group for p in held}
    assert (fitted, held) == tuple(sorted(part, key=rows.index) for part in pairs.divide(rows[::-1], 0.3))
    # As a policy's splits are cut: what is fitted at the default share is "reward", case and spaces aside.
    assert {chats.split_of((("user", p.group),)) for p in fitted} == {"reward"}
    assert {chats.split_of((("user", p.group.upper() + " "),)) for p in held} == {"policy", "eval"}
    twice = [pair(held[0].group, "the same post"), pair(fitted[0].group, "the same post"), fitted[0]]
    assert pairs.divide(twice, 0.3) == ([fitted[0]], [twice[0]])


def test_a_prompt_whose_rows_name_both_splits_is_fitted_in_none():
    rows = [pair("q", "Q  one")._replace(split=split) for split in ("train", "test")]
    rows += [pair("r", (("user", "R"),))._replace(split="train"), pair("s", (("user", "s"),))._replace(split="test")]
    assert pairs.sides([rows[0]._replace(prompt="q one"), *rows[1:]]) == [None, True, False, True]
    assert pairs.divide(rows, 0.3) == ([rows[2]], [rows[1], rows[3]])


@pytest.mark.parametrize(
    ("counts", "most", "taken"),
    [((2000, 500), 400, (320, 80)), ((20, 5), None, (20, 5)), ((20, 5), 25, (20, 5)), ((99, 1), 10, (9, 1)),
     ((1, 99), 10, (1, 9)), ((30, 0), 10, (10, 0)), ((1, 1), 1, (0, 1))],
)  # fmt: skip
def test_a_cap_keeps_both_parts_in_proportion(counts, most, taken):
    assert pairs.quotas(*counts, most) == taken


def test_a_card_says_what_decided():
    free, own = pair("a"), pair("b")._replace(split="train")
    assert pairs.decided([free, free], "by a hash") == "by a hash"
    assert pairs.decided([own], "by a hash") == "the pairs whose row or file says test or validation"
    assert pairs.decided([own, free], "by a hash").endswith(
        "test or validation, and of those that say nothing by a hash"
    )


def test_own_pairs_without_a_held_out_row_are_divided_for_heads_too(tmp_path, data):
    (tmp_path / "brief.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"q {i}", "chosen": "a", "rejected": "b", "split": "train"}) + "\n" for i in range(40)
        )
    )
    data.path = str(tmp_path)
    read = pairs.read_objective_pairs("own:brief.jsonl", data).pairs
    assert {p.split for p in read} == {""} and {pairs.is_held_out(p) for p in read} == {True, False}


def test_an_epochs_batches():
    lengths = np.array([32] * 13 + [64] * 9 + [128] * 3)
    first, again, other = (pairs.batches(lengths, 4, 0, epoch) for epoch in (0, 0, 1))
    assert [(n, list(i)) for n, i in first] == [(n, list(i)) for n, i in again]
    assert [(n, list(i)) for n, i in first] != [(n, list(i)) for n, i in other]
    for result in (first, other):
        assert len(result) == 25 // 4 and all((lengths[index] <= length).all() for length, index in result)
        used = np.concatenate([index for _, index in result])
        assert len(used) == len(set(used.tolist())) == 24
    assert Counter(n for n, _ in first) == {32: 3, 64: 2, 128: 1}


def test_pairs_of_every_kind_become_what_a_policys_reward_reads(tmp_path):
    hh = tmp_path / "hh.jsonl"
    head = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: well?"
    rows = [{"chosen": f"{head}\n\nAssistant: good ", "rejected": f"{head}\n\nAssistant: bad"}]
    rows.append({"chosen": f"{head}\n\nAssistant: good", "rejected": f"{head}\n\nAssistant: good"})
    hh.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, left_out = pairs.read_pairs("hh_rlhf", str(hh))
    assert result == [pairs.Pair("hi", f"{head} \n\nAssistant:", "good", "bad")]
    assert left_out == {"the same answer twice": 1}
    assert pairs.read_pairs("hh_rlhf", str(hh), prompt="last")[0][0].prompt == "well?"

    posts = tmp_path / "sff.jsonl"
    row = {"info": {"id": "t3_1", "post": "one\ntwo"}, "summaries": [{"text": " bad"}, {"text": " good"}]}
    posts.write_text("".join(json.dumps(row | {"choice": 1, "split": s}) + "\n" for s in ("train", "valid1")))
    assert pairs.read_pairs("summarize_from_feedback", str(posts), "train") == (
        [pairs.Pair("t3_1", "one two", "good", "bad")],
        Counter(),
    )
    own = tmp_path / "mine.jsonl"
    own.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n" + json.dumps({"prompt": "bare"}))
    result, left_out = pairs.read_pairs("jsonl", str(own))
    assert result == [pairs.Pair("q", "\n\nHuman: q \n\nAssistant:", "a", "b")]
    assert left_out == {"a prompt without answers": 1}
    cut = Counter()

    def letters(prompt, response):
        return formats.Encoded([ord(c) for c in (prompt + response)[:3]], [0] * 3)

    rows = pairs.encode_pairs([pair("g", "pp"), pair("g", "long")], letters, cut)
    assert [row.pair.prompt for row in rows] == ["pp"] and cut == {"the same row twice, when cut": 1}
