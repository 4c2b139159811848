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
    result = list(files.rows(path))
    assert [row for _, row in result] == rows and result[-1][0] == f"{path}:2500"
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
    with pytest.raises(ValueError, match=r"f:3 has no text in b and c; why\. \(Its fields: a, c\.\)"):
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


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.part"])
def test_compression_is_told_by_the_bytes_and_marks_of_byte_order_are_dropped(tmp_path, compress, name):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / name
    with pyarrow.output_stream(str(path), compression=compress or None) as stream:
        stream.write('\ufeff{"a": "é"}\r\n\ufeff{"a": "🙂"}\r\n'.encode())
    assert list(files.rows(path)) == [(f"{path}:1", {"a": "é"}), (f"{path}:2", {"a": "🙂"})]


def test_zstd_is_found_in_a_directory_and_a_cut_file_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.jsonl.zst"
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(b"".join(b'{"a": %d}\n' % i for i in range(9000)))
    assert files.find(tmp_path, "") == [path] and len(list(files.rows(path))) == 9000
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst is not a zstd file, or is damaged after line \d+"):
        list(files.rows(path))


def test_hidden_files_and_directories_are_no_data(write, tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "._rows.jsonl").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (tmp_path / "old.jsonl").mkdir()
    assert files.find(tmp_path, "") == [tmp_path / "rows.jsonl"]
    with pytest.raises(ValueError, match=r"\._rows\.jsonl is an AppleDouble file"):
        list(files.rows(tmp_path / "._rows.jsonl"))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"prompt": "cut \\ud83d"}', r"prompt holds \\ud83d, half of a surrogate pair, at character 4"),
        ('{"messages": [{"content": "x"}, {"content": "\\uDE42"}]}', r"messages\[1\]\.content holds \\ude42"),
        ('{"a": {"b": ["\\ud83d", "\\ude42"]}}', r"a\.b\[0\] holds"),
    ],
)
def test_half_of_a_surrogate_pair_is_named_by_file_line_and_field(write, tmp_path, line, field):
    path = write(tmp_path / "a.jsonl", ['{"prompt": "whole \\ud83d\\ude42"}', line])
    with pytest.raises(ValueError, match=field) as error:
        list(files.rows(path))
    assert f"{path}:2" in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": "é"}\n'.encode("utf-16"), "is text in UTF-16.*iconv"),
        (b'{"a": "ok"}\n{"a": "\xe9"}\n', r"a\.jsonl is not UTF-8 text \(line 2, byte 7"),
        (b"PK\x03\x04 zip", "a zip archive"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"\xfd7zXZ\x00", "compressed by xz"),
        (b'[{"a": 1},\n {"a": 2}]', "not valid JSON.*jq"),
    ],
)
def test_what_cannot_be_read_is_said_with_what_to_do(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        list(files.rows(tmp_path / "a.jsonl"))
