"""Posts with their authors' summaries."""

import pytest

from meal_jax.data import tldr

ROW = {"id": "t3_b", "subreddit": "x", "title": "T", "post": "A post.", "summary": " short\n", "score": 3}


def test_each_id_once_in_order_without_empty_rows(write, tmp_path):
    rows = [
        ROW,
        ROW | {"post": "again"},
        {"id": "t3_a", "post": "é", "summary": "e"},
        ROW | {"id": "c", "summary": " "},
    ]
    first, second = tldr.read_summarised(write(tmp_path / "posts.jsonl.gz", rows))
    assert (first.post, first.summary) == (("t3_a", "", "", "é"), "e")
    assert (second.post, second.summary) == (("t3_b", "T", "x", "A post."), "short")


@pytest.mark.parametrize("name", ["id", "post", "summary"])
def test_a_bad_row_is_named_by_file_and_line(write, tmp_path, name):
    path = write(tmp_path / "posts.jsonl", [ROW, {k: v for k, v in ROW.items() if k != name}])
    with pytest.raises(ValueError, match=f"{path}:2 has no text in {name}; each line needs id, post and summary"):
        tldr.read_summarised(path)
