"""Comparisons: invented rows in the published schema, and real rows where they are at hand."""

import copy
from pathlib import Path

import pytest

from meal_jax.data import summarize_from_feedback as sff

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "summarize_from_feedback"


def row(name="t3_a", post="A post.\nOf two lines. é", split="train", choice=1, **info):
    return {
        "info": {"id": name, "post": post, "title": "T", "subreddit": "tea", **info},
        "split": split,
        "summaries": [{"text": " one", "policy": "ref", "note": "n"}, {"text": " two", "policy": "sup", "note": ""}],
        "choice": choice,
        "worker": "w",
        "batch": "batch3",
        "extra": {"confidence": 7},
    }


ARTICLE = row("cnn1", None, "valid2", article="News.", site="cnn", title=None, subreddit=None) | {"extra": {}}


def test_every_field(write, tmp_path):
    path = write(tmp_path / "batch3.json", [row(), ARTICLE])  # published names end in .json and hold lines
    first, second = sff.read_comparisons(tmp_path)
    assert first == sff.Comparison(
        "t3_a", "T", "tea", "A post.\nOf two lines. é", "", "", (" one", " two"), ("ref", "sup"), 1, 7, "train", "batch3",
        f"{path}:1",
    )  # fmt: skip
    assert (second.post, second.article, second.site, second.title) == ("", "News.", "cnn", "")
    assert second.confidence == 0 and second.split == "validation"
    assert sff.read_comparisons(tmp_path, "validation") == [second]


def test_posts_count_once_and_articles_not_at_all(write, tmp_path):
    rows = [row("t3_b"), row("t3_a", "First."), row("t3_a", "Second."), ARTICLE, row("t3_c", "")]
    posts = sff.posts(sff.read_comparisons(write(tmp_path / "a.jsonl.gz", rows)))
    assert [(post.id, post.post) for post in posts] == [("t3_a", "First."), ("t3_b", row()["info"]["post"])]


def broken(path, value):
    out = copy.deepcopy(row())
    index = out
    for key in path[:-1]:
        index = index[key]
    if value is None:
        del index[path[-1]]
    else:
        index[path[-1]] = value
    return out


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (broken(["info"], None), "no object in info"),
        (broken(["info", "id"], 3), "info has no text in id"),
        (broken(["info", "post"], None), "neither post nor article"),
        (broken(["info", "post"], ["x"]), "something else than text in post"),
        (broken(["summaries"], [{"text": "x"}]), "not two objects in summaries"),
        (broken(["summaries", 1, "text"], None), r"summaries\[1\] has no text in text"),
        (broken(["choice"], 2), "choice 2, which is neither 0 nor 1"),
        (broken(["choice"], True), "choice True"),
        (broken(["choice"], None), "choice None"),
        (broken(["split"], "dev"), "split 'dev', which is none of train, valid1, valid2"),
        ({"chosen": "a", "rejected": "b"}, "no object in info"),
    ],
)
def test_a_wrong_schema_is_named_by_file_and_line(write, tmp_path, bad, says):
    path = write(tmp_path / "a.jsonl", [row(), bad])
    with pytest.raises(ValueError, match=says) as error:
        sff.read_comparisons(path)
    assert f"{path}:2" in str(error.value)


def test_a_file_cut_short_is_named(write, tmp_path):
    whole = write(tmp_path / "a.jsonl.gz", [row(f"t3_{i * i}") for i in range(2000)])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz ends early, after line [1-9]"):
        sff.read_comparisons(whole)


def test_missing_data_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"openai/summarize_from_feedback.*--dataset=summarize_from_feedback"):
        sff.read_comparisons(tmp_path / "none")


def test_records_keep_everything():
    comparison = sff.parse(row(), "here")
    assert sff.from_record(sff.to_record(comparison), "here") == comparison


@pytest.mark.skipif(not REAL.is_dir(), reason="the published rows are not at ../shared/data/summarize_from_feedback")
def test_the_published_rows():
    result = sff.read_comparisons(REAL)
    assert len(result) == 1050 and {c.split for c in result} == {"validation"} and {c.choice for c in result} == {0, 1}
    assert all(c.post and c.subreddit and all(c.summaries) and c.confidence in range(1, 10) for c in result)
    posts = sff.posts(result)
    assert len(posts) == 867 and [p.id for p in posts] == sorted({c.id for c in result})
