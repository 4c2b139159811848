"""Rows of files and their places; what is damaged or of another form is named by file and line."""

import sys
from pathlib import Path

import pytest

from meal_jax.data import files

ROWS = [{"a": "é 🙂", "n": {"b": [1, None]}}, {"a": "\u2028 stays in its line", "n": None}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_json_lines_with_unicode(write, tmp_path, name):
    path = write(tmp_path / name, [ROWS[0], "", ROWS[1]])
    assert list(files.rows(path)) == [(f"{path}:1", ROWS[0]), (f"{path}:3", ROWS[1])]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"text": f"é{i}", "info": {"post": None if i % 2 else "x"}, "two": [{"t": "a"}, {"t": "b"}]}
        for i in range(2500)
    ]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = list(files.rows(path))
    assert [row for _, row in found] == rows and found[-1][0] == f"{path}:2500"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.parquet is not a parquet file, or is damaged after row 0"):
        list(files.rows(path))


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install pyarrow.*JSON lines"):
        list(files.rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("bad", "says"), [("{'a': 1}", "not valid JSON"), ("[1]", "a JSON list"), ('"x"', "a JSON str")]
)
def test_a_line_that_is_no_object_is_named(write, tmp_path, bad, says):
    path = write(tmp_path / "a.jsonl", [ROWS[0], bad])
    with pytest.raises(ValueError, match=says) as error:
        list(files.rows(path))
    assert f"{path}:2" in str(error.value)


def test_missing_text_names_the_fields():
    with pytest.raises(ValueError, match=r"f:3 has no text in b and c; why\. \(Fields of this row: a, c\.\)"):
        files.need_text({"a": "x", "c": 1}, ("a", "b", "c"), "f:3", "why.")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("x/train.jsonl.gz", "train"),
        ("x/test-00000.parquet", "test"),
        ("x/valid2.json", "validation"),
        ("validation/0000.parquet", "validation"),
        ("test/train.jsonl", "train"),
        ("x/batch3.json", None),
    ],
)
def test_the_split_is_in_the_name(name, split):
    assert files.split_of(Path(name)) == split
