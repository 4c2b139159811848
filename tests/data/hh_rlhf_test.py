"""The reader of preference pairs: invented rows in the published schema, and real rows where they are at hand."""

import gzip
import json
from pathlib import Path

import pytest

from meal_jax.data import chat as chats
from meal_jax.data import hh_rlhf, templates

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf"
HEAD = "\n\nHuman: Which tea?\n\nAssistant: Green or black?\n\nHuman: Green."


def row(chosen=HEAD + "\n\nAssistant: Sencha, then.", rejected=HEAD + "\n\nAssistant: No idea."):
    return {"chosen": chosen, "rejected": rejected}


def write(path, rows):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8").write(text)
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_a_pair_is_split_at_the_last_assistant_turn(tmp_path, name):
    path = write(tmp_path / name, [row()])
    result = hh_rlhf.read_pairs(path)
    turns = (("user", "Which tea?"), ("assistant", "Green or black?"), ("user", "Green."))
    assert result.pairs == [hh_rlhf.Pair(turns, "Sencha, then.", "No idea.", f"{path}:1")]
    assert result.prompts == [turns] and result.skipped == []


def test_only_whitespace_is_stripped(tmp_path):
    answer = "\n\n:Assistant tnatsissA: stays, and so does nnn\n\n"  # a strip of the mark's letters would eat these
    path = write(tmp_path / "a.jsonl", [row(chosen=HEAD + "\n\nAssistant:" + answer)])
    assert hh_rlhf.read_pairs(path).pairs[0].chosen == ":Assistant tnatsissA: stays, and so does nnn"


def test_rows_without_a_pair_are_counted_and_keep_their_prompt(tmp_path):
    other = "\n\nHuman: Which tea?\n\nAssistant: Black."
    rows = [
        row(rejected=other),  # parts before the last assistant turn
        row(rejected=HEAD + "\n\nAssistant: "),  # nothing said
        row(rejected=HEAD + "\n\nAssistant:  Sencha, then. "),  # the same said twice
        row(),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    result = hh_rlhf.read_pairs(path)
    assert [pair.source for pair in result.pairs] == [f"{path}:4"]
    assert result.skipped == [(f"{path}:{i + 1}", reason) for i, reason in enumerate(hh_rlhf.REASONS)]
    assert [result.count(reason) for reason in hh_rlhf.REASONS] == [1, 1, 1]
    assert len(result.prompts) == 4 and len(set(result.prompts)) == 1


def test_turns_of_one_speaker_in_a_row_are_joined():
    text = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: e"
    turns, answer = hh_rlhf.split_transcript(text, "here")
    assert turns == (("user", "a"), ("assistant", "b\n\nc"), ("user", "d")) and answer == "e"
    turns, answer = hh_rlhf.split_transcript("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "here")
    assert turns == (("user", "a"),) and answer == "b\n\nc"


# Each kind of published row whose prompt is not the same after turns were joined: two assistant turns in the middle, two at
# the end, both, a space before a label, two human turns.
REPEATED = {
    "middle": "\n\nHuman: a\n\nAssistant: b\n\nAssistant:  c\n\nHuman: d\n\nAssistant: e",
    "end": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c",
    "both": "\n\nHuman: a\n\nAssistant: b \n\nAssistant: c\n\nHuman: d\n\nAssistant: Human: e\n\nAssistant: f",
    "human": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
    "spaces": "\n\nHuman:  a. \n\nAssistant: b \n\nHuman: c\n\nAssistant: d",
    "none": HEAD + "\n\nAssistant: Sencha.",
}


@pytest.mark.parametrize("text", REPEATED.values(), ids=REPEATED)
def test_plain_prompts_are_the_published_text_to_the_character(tmp_path, chat_tokenizer, text):
    """RiC's prompt: what stands before the last "\\n\\nAssistant:", a space, and that label."""
    path = write(tmp_path / "a.jsonl", [row(text, text + " or not")])
    (pair,) = hh_rlhf.read_pairs(path, as_written=True).pairs
    published = text.rpartition(hh_rlhf.ASSISTANT)[0] + " \n\nAssistant:"
    chat = templates.make_chat(chat_tokenizer, "plain", "assistant")
    assert chats.render(chat, pair.turns, True).removeprefix(chat_tokenizer.bos_token) == published
    assert chats.transcript(pair.turns) == published  # what rewards read
    roles = [role for role, _ in pair.turns]
    assert roles == (["user", "assistant"] * len(roles))[: len(roles)] and roles[-1] == "user"
    assert pair.chosen == text.rpartition(hh_rlhf.ASSISTANT)[2].strip()


@pytest.mark.skipif(not REAL.is_dir(), reason="the published rows are not at ../shared/data/hh_rlhf")
def test_every_published_row_gives_the_published_text():
    joined, rows = 0, [row for folder in sorted(REAL.iterdir()) for row in hh_rlhf.rows(folder)]
    for source, published in rows:
        text = published["chosen"].rpartition(hh_rlhf.ASSISTANT)[0] + " \n\nAssistant:"
        assert chats.transcript(hh_rlhf.parse(published, source, as_written=True)[0].turns) == text, source
        joined += chats.transcript(hh_rlhf.parse(published, source)[0].turns) != text
    assert (len(rows), joined) == (7415, 18)


def test_a_directory_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path / "b.jsonl", [row()])
    write(tmp_path / "a.jsonl.gz", ["", row()])  # blank lines count as lines and hold nothing
    (tmp_path / "notes.txt").write_text("not data")
    assert [Path(pair.source).name for pair in hh_rlhf.read_pairs(tmp_path).pairs] == ["a.jsonl.gz:2", "b.jsonl:1"]


@pytest.mark.parametrize(
    "bad, says",
    [
        ("{'chosen': 1}", "not valid JSON"),
        ({"chosen": HEAD + "\n\nAssistant: x"}, "no text in rejected"),
        ({"chosen": 3, "rejected": None}, "no text in chosen and rejected"),
        ("[1, 2]", "is a JSON list"),
        (row(chosen="\n\nHuman: hello"), r"chosen has no .* turn"),
        (row(rejected="\n\nAssistant: hello"), "rejected does not begin with"),
        (row(rejected="hello\n\nHuman: a\n\nAssistant: b"), "rejected does not begin with"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, says):
    path = write(tmp_path / "a.jsonl", [row(), bad])
    with pytest.raises(ValueError, match=says) as error:
        hh_rlhf.read_pairs(path)
    assert f"{path}:2" in str(error.value)


def test_damaged_files_are_named(tmp_path):
    whole = write(tmp_path / "whole.jsonl.gz", [row(chosen=f"{HEAD} {i}\n\nAssistant: {i * i}") for i in range(999)])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz ends early, after line [1-9]"):
        hh_rlhf.read_pairs(cut)
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("not gzip")
    with pytest.raises(ValueError, match=r"plain\.jsonl\.gz is not a gzip file"):
        hh_rlhf.read_pairs(plain)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(row()).encode() + b"\n\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.jsonl is not UTF-8"):
        hh_rlhf.read_pairs(latin)


def test_missing_data_says_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="Anthropic/hh-rlhf"):
        hh_rlhf.read_pairs(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"it has notes\.txt"):
        hh_rlhf.read_pairs(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published rows are not at ../shared/data/hh_rlhf")
@pytest.mark.parametrize("folder, rows, diverged", [("harmless-base", 2312, 5), ("helpful-base", 2354, 9)])
def test_the_published_rows(folder, rows, diverged):
    result = hh_rlhf.read_pairs(REAL / folder)
    assert len(result.prompts) == rows == len(result.pairs) + len(result.skipped)
    assert result.count(hh_rlhf.DIVERGED) == diverged
    for pair in result.pairs:
        roles = [role for role, _ in pair.turns]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)] and roles[-1] == "user"
        assert pair.chosen and pair.rejected and pair.chosen != pair.rejected
