"""Pairs from scored answers: which of two is chosen, ties, how many, conversations, and what is refused."""

import json

import pytest

from meal_jax.reward_training import pairs, ranked_answers


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(row, text, **rewards):
    asked = ["Hello", "\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Which?"]
    return {"row": row, "prompt": asked[row % 2], "answer": text, "rewards": rewards}


@pytest.fixture
def files(tmp_path):
    """Two prompts, the second a conversation, with scored answers: (prompts, answers, arguments of the command)."""
    talk = [("user", "Tea?"), ("assistant", "Yes."), ("user", "Which?")]
    messages = [{"role": role, "content": text} for role, text in talk]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Hello"}, {"messages": messages}])
    scored = [answer(0, "a", brief=1.0, kind=0.0), answer(0, "b", brief=2, kind=0.0), answer(0, "c", brief=3.0, kind=0.0),
              answer(1, "d", brief=0.5, kind=0.1), answer(1, "e", brief=0.5, kind=-0.1)]  # fmt: skip
    answers = write(tmp_path / "answers.jsonl", scored)
    return prompts, answers, [f"--answers={answers}", f"--prompts={prompts}", f"--out={tmp_path / 'out'}"]


def test_the_better_answer_is_chosen_and_ties_make_no_pair(files, tmp_path, capsys):
    ranked_answers.main(files[2])
    assert "brief.jsonl: 3 pairs" in capsys.readouterr().out
    read = {name: pairs.own.read_rows(tmp_path / "out" / f"{name}.jsonl").pairs for name in ("brief", "kind")}
    assert {(p.chosen, p.rejected) for p in read["brief"]} == {("b", "a"), ("c", "a"), ("c", "b")}
    assert [(p.chosen, p.rejected) for p in read["kind"]] == [("d", "e")]
    assert read["kind"][0].turns == (("user", "Tea?"), ("assistant", "Yes."), ("user", "Which?"))


def test_a_prompt_gives_no_more_than_asked_for_and_the_same_again(files, tmp_path):
    ranked_answers.main([*files[2], "--per_prompt=2"])
    first = (tmp_path / "out" / "brief.jsonl").read_text()
    assert first.count("\n") == 2
    ranked_answers.main([*files[2][:2], f"--out={tmp_path / 'again'}", "--per_prompt=2"])
    assert (tmp_path / "again" / "brief.jsonl").read_text() == first
    with pytest.raises(SystemExit, match=r"brief\.jsonl.* is there already: remove it, or name another --out"):
        ranked_answers.main(files[2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x"}], r"answers\.jsonl:1 is no answer as meal_jax\.generate writes it"),
        (
            [answer(0, "x", brief=1.0) | {"prompt": "Which?"}],
            r"answers\.jsonl:1 answers 'Which\?', and row 0 of the file of prompts is 'Hello'",
        ),
        ([answer(2, "x", brief=1.0)], "answers prompt 2, and the file of prompts has 2, from 0"),
        (
            [answer(0, "x", brief=1.0), answer(0, "y", kind=1.0)],
            r"answers\.jsonl:2 has the rewards .*finite ones of brief",
        ),
        ([answer(0, "x", brief=float("nan"))], "each line has finite ones of brief"),
        ([answer(0, "x", brief=1.0), answer(1, "y", brief=2.0)], "No two answers to a prompt differ in brief"),
        ([], r"answers\.jsonl holds no answers"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_nothing_written(files, tmp_path, rows, message):
    write(files[1], rows)
    with pytest.raises(SystemExit, match=message):
        ranked_answers.main(files[2])
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_told(files):
    with pytest.raises(SystemExit, match="--per_prompt=0 must be at least 1"):
        ranked_answers.main([*files[2], "--per_prompt=0"])
    files[1].unlink()
    with pytest.raises(SystemExit, match=r"There is no .*answers\.jsonl"):
        ranked_answers.main(files[2])


def test_pairs_keep_the_split_of_their_prompt(files, tmp_path):
    write(files[0], [{"prompt": "Hello", "split": "test"}, {"prompt": "Which?"}])
    ranked_answers.main(files[2])
    written = [json.loads(line) for line in (tmp_path / "out" / "brief.jsonl").read_text().splitlines()]
    assert [row["split"] for row in written] == ["test"] * 3
    (row,) = map(json.loads, (tmp_path / "out" / "kind.jsonl").read_text().splitlines())
    assert "split" not in row
    read = pairs.read_pairs("jsonl", str(tmp_path / "out" / "brief.jsonl")).pairs
    assert all(map(pairs.is_held_out, read))
