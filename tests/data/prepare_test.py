"""Prepared data sets: TFDS's format, read by `as_data_source` without TensorFlow; idempotent, checked, repaired."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meal_jax.data import hh_rlhf, own, prepare, read_prepared
from meal_jax.data import summarize_from_feedback as sff

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HEAD = "\n\nHuman: Which tea? é🙂\n\nAssistant: Green?\n\nHuman: Green."


def pair(i, rejected=None):
    return {"chosen": f"{HEAD}\n\nAssistant: {i}.", "rejected": rejected or f"{HEAD}\n\nAssistant: No {i}."}


def comparison(i, split):
    summaries = [{"text": f"s{i}", "policy": "p"}, {"text": "", "policy": "q"}]
    info = {"id": f"t3_{i}", "post": f"Post {i}\né", "title": "t", "subreddit": "r"}
    return {"info": info, "split": split, "summaries": summaries, "choice": i % 2, "batch": "b"}


@pytest.fixture
def source(tmp_path, write):
    """Two subsets of hh-rlhf, odd rows among them; and comparisons in two files."""
    odd = [pair(0, "\n\nHuman: Else?\n\nAssistant: x"), pair(1, HEAD + "\n\nAssistant: "), pair(2, pair(2)["chosen"])]
    for subset in ("harmless-base", "helpful-base"):
        write(tmp_path / "hh" / subset / "train.jsonl.gz", [pair(i) for i in range(5)])
        write(tmp_path / "hh" / subset / "test.jsonl.gz", [pair(9), *odd])
    write(tmp_path / "sff" / "comparisons" / "batch3.json", [comparison(i, "train") for i in range(4)])
    write(tmp_path / "sff" / "comparisons" / "batch4.json", [comparison(i, "valid1") for i in range(3)])
    return tmp_path


def fields(pairs):
    return [p[:3] for p in pairs.pairs], pairs.prompts, [reason for _, reason in pairs.skipped]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "meal_jax.data.prepare", *map(str, arguments)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
    )


def test_tfds_reads_what_was_written_in_order_without_tensorflow(source):
    program = f"""
import sys
from meal_jax.data import prepare
directories = prepare.prepare("hh_rlhf", {str(source / "hh")!r}, {str(source / "out")!r})
directories += prepare.prepare("summarize_from_feedback", {str(source / "sff")!r}, {str(source / "out")!r})
import tensorflow_datasets as tfds
hh, _, sff = (tfds.builder_from_directory(d) for d in directories)
train, test = hh.as_data_source(split="train"), hh.as_data_source(split="test")
assert [r["chosen_answer"].decode() for r in train] == [f"{{i}}." for i in range(5)]
assert [r["no_pair"].decode() for r in test] == ["", *{hh_rlhf.REASONS!r}]
assert "é🙂" in test[0]["chosen"].decode()
rows = sff.as_data_source(split="validation")
assert len(rows) == 3 and rows[2]["id"] == b"t3_2" and int(rows[1]["choice"]) == 1
assert hh.info.features["chosen"].__class__.__name__ == "Text" and len(sff.info.splits) == 2
assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"], "TensorFlow was imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    index = source / "out" / "hh_rlhf" / "helpful-base" / "1.0.0"
    assert {"dataset_info.json", "features.json", "checksums.json"} < set(os.listdir(index))
    assert (index / "hh_rlhf-train.array_record-00000-of-00001").is_file()
    assert not list(source.glob("out/**/incomplete*")) and not (source / "out" / "downloads").exists()


def test_our_readers_read_the_same_from_prepared_and_from_published_files(source):
    prepare.prepare("hh_rlhf", source / "hh", source / "out")
    for split in (None, "train", "test"):
        raw = hh_rlhf.read_pairs(source / "hh" / "helpful-base", split)
        assert fields(hh_rlhf.read_pairs(source / "out" / "hh_rlhf" / "helpful-base", split)) == fields(raw)
    (directory,) = prepare.prepare("summarize_from_feedback", source / "sff", source / "out")
    raw, ready = sff.read_comparisons(source / "sff"), sff.read_comparisons(source / "out" / "summarize_from_feedback")
    assert [c[:-1] for c in ready] == [c[:-1] for c in raw] and len(raw) == 7
    assert ready[5].source == f"{directory}/validation:2"
    with pytest.raises(FileNotFoundError, match="no dev split, only test, train"):
        hh_rlhf.read_pairs(source / "out" / "hh_rlhf" / "helpful-base", "dev")


def test_a_second_run_leaves_what_is_whole_and_makes_anew_what_is_not(source, capsys):
    out = source / "out"
    first, second = prepare.prepare("hh_rlhf", source / "hh", out)

    def states():
        return [os.stat(d / "dataset_info.json").st_mtime_ns for d in (first, second)]

    before = states()
    capsys.readouterr()
    assert prepare.prepare("hh_rlhf", source / "hh", out) == [first, second] and states() == before
    assert capsys.readouterr().out.count("is there and matches its checksums: 4 rows of test, 5 rows of train") == 2

    shard = first / "hh_rlhf-train.array_record-00000-of-00001"
    good = shard.read_bytes()
    shard.write_bytes(good[:300] + bytes([good[300] ^ 255]) + good[301:])
    prepare.prepare("hh_rlhf", source / "hh", out)
    text = capsys.readouterr().out
    assert f"{first} does not match its checksums: writing it again." in text and str(second) + " is there" in text
    assert shard.read_bytes() == good and states()[1] == before[1]

    (first / "checksums.json").unlink()  # as a run leaves it that is killed just before the end
    (first.parent / "incomplete.XYZ_1.0.0").mkdir()  # and a little earlier
    prepare.prepare("hh_rlhf", source / "hh", out)
    assert prepare.directory_state(first, None) == "whole" and sorted(os.listdir(first.parent)) == ["1.0.0"]


def test_other_source_files_are_noticed(source, write, capsys):
    out = source / "out"
    prepare.prepare("hh_rlhf", source / "hh" / "helpful-base", out)
    write(source / "hh" / "helpful-base" / "train.jsonl.gz", [pair(i) for i in range(8)])
    (directory,) = prepare.prepare("hh_rlhf", source / "hh" / "helpful-base", out)
    assert "was made from other files: writing it again" in capsys.readouterr().out
    assert read_prepared.splits(directory) == {"test": 4, "train": 8}


def test_a_bad_row_leaves_nothing_behind(source, write):
    path = write(source / "hh" / "harmless-base" / "train.jsonl.gz", [pair(0), {"chosen": "x"}])
    done = run("--dataset=hh_rlhf", f"--source={source / 'hh'}", f"--out={source / 'out'}")
    assert done.returncode == 1 and f"{path}:2 has no text in rejected" in done.stderr
    assert "Traceback" not in done.stderr and not list(source.glob("out/**/*.array_record*"))


def test_without_network_the_message_names_source(tmp_path):
    done = run("--dataset=summarize_from_feedback", f"--out={tmp_path}", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 1 and "give their directory by --source=DIRECTORY" in done.stderr
    assert "comparisons/train/0000.parquet" in done.stderr and "Traceback" not in done.stderr


def test_the_hubs_parquet_files_are_read(source, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = []
    for split, labels in (("train", ["train"]), ("validation", ["valid1", "valid2"])):
        rows = [comparison(i, labels[i % len(labels)]) for i in range(6)]
        rows[0]["info"] |= {"post": None, "article": "News."}
        paths.append(source / "hub" / split / "0000.parquet")
        paths[-1].parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), paths[-1])
    monkeypatch.setattr(prepare, "hub_sources", lambda dataset, config: paths)
    (directory,) = prepare.prepare("summarize_from_feedback", out=source / "out")
    assert read_prepared.splits(directory) == {"train": 6, "validation": 6}
    assert sff.read_comparisons(directory, "train")[0].article == "News."
    monkeypatch.setattr(prepare, "hub_sources", None)  # what is there is not fetched again
    assert prepare.prepare("summarize_from_feedback", out=source / "out") == [directory]


def test_damage_found_while_reading_is_named(source):
    (directory,) = prepare.prepare("summarize_from_feedback", source / "sff", source / "out")
    shard = directory / "summarize_from_feedback-train.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"is damaged.*meal_jax\.data\.prepare"):
        sff.read_comparisons(directory)


def tfds_directory(folder, name, features, **splits):
    """The directory of a TFDS data set as a builder of one's own writes it, from the rows of each split."""
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds.disable_progress_bar()
    methods = {
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features)),
        "_split_generators": lambda self, _: {split: iter(enumerate(rows)) for split, rows in splits.items()},
        "_generate_examples": lambda self: None,
    }
    kind = type(name, (tfds.core.GeneratorBasedBuilder,), methods | {"VERSION": "1.0.0", "url_infos": None})
    builder = kind(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_data_sets_of_others_are_read_by_their_fields_or_named(tmp_path):
    """As TFDS builders of one's own write them: more features, of other types, and texts that are none."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text, many = tfds.features.Text(), tfds.features.Sequence(tfds.features.Scalar(np.int32))

    answers = {"chosen": text, "rejected": text}
    more = {"score": tfds.features.Scalar(np.float32), "ranks": many, "by": {"name": text}}
    extra = {"score": 0.5, "ranks": [1, 2], "by": {"name": "é"}}
    foreign = tfds_directory(tmp_path, "Foreign", answers | more, train=[pair(i) | extra for i in range(3)])
    assert [p.chosen for p in hh_rlhf.read_pairs(foreign).pairs] == ["0.", "1.", "2."]
    assert next(read_prepared.records(foreign))[1]["score"] == 0.5
    assert next(read_prepared.records(foreign))[1]["by"] == {"name": "é"}
    with pytest.raises(ValueError, match=r"train:1 is no row that .*summarize_from_feedback` wrote.*fields .*chosen"):
        sff.read_comparisons(foreign)
    latin = tfds_directory(
        tmp_path, "Latin", answers, train=[{"chosen": b"\n\nHuman: \xe9\n\nAssistant: b", "rejected": "x"}]
    )
    with pytest.raises(ValueError, match=r"latin/1\.0\.0/train:1: chosen is not UTF-8 text \(byte 9: "):
        hh_rlhf.read_pairs(latin)
    info = latin / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"is stored as tfrecord, .* file_format='array_record'"):
        hh_rlhf.read_pairs(latin)
    info.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        hh_rlhf.read_pairs(latin)
    (latin / "features.json").unlink()
    with pytest.raises(ValueError, match=r"no data set of TFDS.*Dataset\.to_parquet"):
        hh_rlhf.read_pairs(latin)


def test_a_tfds_data_set_of_ones_own_gives_prompts_and_conversations(tmp_path):
    """Rows as JSON lines have them, a sequence of messages too; splits by name, and columns."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    turn = {"role": text, "content": text}

    talk = [[("user", "a?"), ("assistant", "b."), ("user", f"c{i}?")] for i in range(3)]
    talk.append([("user", "é?")])
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns], "n": 1} for turns in talk]
    messages = {"messages": tfds.features.Sequence(turn), "n": tfds.features.Scalar(np.int32)}
    path = tfds_directory(tmp_path, "Talks", messages, train_sft=rows[:2], test=rows[2:])
    found = own.read_by_split(path.parent)  # the newest version
    told = {split: set(pairs.prompts) for split, pairs in found.items()}  # TFDS shuffles what it writes
    assert told == {"train": set(map(tuple, talk[:2])), "test": set(map(tuple, talk[2:]))}
    assert {turns for turns, _ in own.read_prompts(f"{path}:messages")} == set(map(tuple, talk))
    with pytest.raises(ValueError, match=r"talks/1\.0\.0/train_sft:1 has no column 'question'; it has messages, n"):
        own.read_prompts(f"{path}:question")
    pairs = tfds_directory(tmp_path, "Ranked", {"prompt": text, "chosen": text, "rejected": text}, harder=[
        {"prompt": "Which?", "chosen": "This.", "rejected": "No."}
    ])  # fmt: skip
    ((only,),) = (found.pairs for found in own.read_by_split(pairs).values())
    assert (only.turns, only.chosen, only.rejected) == ((("user", "Which?"),), "This.", "No.")
    assert only.source == f"{pairs}/harder:1"


def test_a_source_without_the_files_says_what_it_should_hold(tmp_path, write):
    with pytest.raises(FileNotFoundError, match="none of the directories harmless-base, helpful-base, helpful-online"):
        prepare.prepare("hh_rlhf", tmp_path, tmp_path / "out")
    write(tmp_path / "helpful-online" / "rows.jsonl", [pair(0)])
    with pytest.raises(ValueError, match=r"rows\.jsonl begins with neither train nor test"):
        prepare.prepare("hh_rlhf", tmp_path, tmp_path / "out")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published rows are not at ../shared/data")
def test_the_published_rows(tmp_path):
    directories = prepare.prepare("hh_rlhf", SHARED / "hh_rlhf", tmp_path)
    for directory, rows, diverged in zip(directories, (2312, 2354, 2749), (5, 9, 3), strict=True):
        assert read_prepared.splits(directory) == {"test": rows}
        result = hh_rlhf.read_pairs(directory)
        assert fields(result) == fields(hh_rlhf.read_pairs(SHARED / "hh_rlhf" / directory.parent.name))
        assert result.count(hh_rlhf.DIVERGED) == diverged
