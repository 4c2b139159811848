"""Prompts and pairs of one's own."""

import json

import pytest

from meal_jax.data import own

TURNS = [{"role": "user", "content": " a "}, {"role": "assistant", "content": ""}, {"role": "user", "content": "é"}]


def test_prompts_conversations_and_pairs(write, tmp_path):
    rows = [
        {"prompt": "Which tea?"},
        {"messages": TURNS, "chosen": " yes\n", "rejected": "no", "note": "other fields do no harm"},
        {"prompt": "x", "chosen": "", "rejected": "no"},
        {"prompt": "y", "chosen": "no", "rejected": " no"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    result = own.read_rows(path)
    conversation = (("user", "a"), ("assistant", ""), ("user", "é"))
    assert result.prompts == [(("user", "Which tea?"),), conversation, (("user", "x"),), (("user", "y"),)]
    assert result.pairs == [(conversation, "yes", "no", f"{path}:2")]
    assert result.skipped == [(f"{path}:3", "an empty answer"), (f"{path}:4", "the same answer twice")]


def test_splits_by_row_and_by_name(write, tmp_path):
    write(tmp_path / "train.jsonl", [{"prompt": "1"}, {"prompt": "2", "split": "test"}])
    write(tmp_path / "test.jsonl.gz", [{"prompt": "3"}])

    def text(split):
        return [turns[0][1] for turns in own.read_rows(tmp_path, split).prompts]

    assert (text("train"), text("test"), text(None)) == (["1"], ["3", "2"], ["3", "1", "2"])
    with pytest.raises(FileNotFoundError, match="no row of split 'validation'"):
        own.read_rows(tmp_path, "validation")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({}, "one of prompt and messages"),
        ({"prompt": "b", "messages": TURNS}, "one of prompt and messages"),
        ({"prompt": 3}, "no text in prompt"),
        ({"prompt": "  "}, "an empty prompt"),
        ({"messages": []}, "no list of objects in messages"),
        ({"messages": "hello"}, "no list of objects in messages"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no text in content"),
        ({"messages": TURNS[1:]}, "roles assistant, user; they must be"),
        ({"messages": TURNS[:2], "chosen": "b", "rejected": "c"}, "roles user, assistant; they must be"),
        ({"messages": [{"role": "system", "content": "s"}, TURNS[0]]}, "system message is the configuration's"),
        ({"prompt": "a", "chosen": "b"}, "no text in rejected; a pair needs both"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "no text in chosen"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(write, tmp_path, bad, says):
    path = write(tmp_path / "a.jsonl", [{"prompt": "ok"}, bad])
    with pytest.raises(ValueError, match=says) as error:
        own.read_rows(path)
    assert f"{path}:2" in str(error.value)


def test_answers_to_learn_from_are_responses_or_else_chosen(write, tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "response": " r "}, {"prompt": "c", "chosen": "yes", "rejected": "no"}]
    path = write(tmp_path / "a.jsonl", [*rows, {"prompt": "d", "response": "r", "chosen": "c", "rejected": "no"}])
    result = [(turns[0][1], answer) for turns, answer in own.read_answers(path)]
    assert result == [("b", "r"), ("c", "yes"), ("d", "r")]
    assert len(own.read_rows(path).prompts) == 4
    with pytest.raises(ValueError, match=rf"{path}:1 has no text in response"):
        own.read_answers(write(tmp_path / "a.jsonl", [{"prompt": "a", "response": 3}]))


def test_a_directorys_name_is_a_split_where_the_directory_is_read_and_not_of_one_file(write, tmp_path):
    path = write(tmp_path / "dev" / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "b", "split": "train"}])
    assert {split: len(pairs.prompts) for split, pairs in own.read_by_split(path).items()} == {"": 1, "train": 1}
    assert own.read_prompts(path) == [((("user", "a"),), ""), ((("user", "b"),), "train")]
    write(path, [{"prompt": "a"}])
    assert list(own.read_by_split(path.parent)) == ["validation"]
    assert own.read_prompts(path.parent) == [((("user", "a"),), "validation")]


@pytest.mark.parametrize("column", ["", ":question"])
def test_a_table_is_refused_with_the_command_that_makes_lines_of_it(tmp_path, column):
    (tmp_path / "t.csv").write_text("question\nWhich tea?\n")
    with pytest.raises(ValueError, match=r"t\.csv is no JSON lines\. Make it some: python -c 'import csv"):
        own.read_rows(f"{tmp_path / 't.csv'}{column}")


def test_upper_case_names_are_read_and_what_is_not_read_is_named(tmp_path, caplog):
    for name in ("train.jsonl", "TEST.JSONL", "more.ndjson", "notes.txt", "README.md"):
        (tmp_path / name).write_text(json.dumps({"prompt": f"Which tea does {name} like?"}) + "\n")
    assert {split: len(pairs.prompts) for split, pairs in own.read_by_split(tmp_path).items()} == {
        "train": 1,
        "test": 1,
    }
    assert "not read are more.ndjson, notes.txt." in caplog.text
