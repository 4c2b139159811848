"""Data sets of the hub, by a hub that is a directory here: what is listed, fetched and read, and what is refused."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from meal_jax import config as base
from meal_jax.data import hub, own
from meal_jax.doctor import files as doctor
from meal_jax.doctor import prompts
from meal_jax.reward_training import pairs

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

CHAT = [{"role": "user", "content": "yes?"}, {"role": "assistant", "content": "no"}]
SO = {"role": "assistant", "content": "so"}


def put(root, name, rows):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / name)


def refused(kind):
    return kind("refused", response=SimpleNamespace(headers={}, request=None, status_code=404))


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """A hub of one data set, o/tickets: {revision: directory}, and its cache; asking it raises `.error`, if set."""
    fake = SimpleNamespace(error=None, gated=False, branches={}, cache=tmp_path / "cache", downloads=[])

    def branch(repository, revision):
        if fake.error is not None:
            raise fake.error
        if repository != "o/tickets":
            raise refused(errors.RepositoryNotFoundError)
        if revision not in fake.branches:
            raise refused(errors.RevisionNotFoundError)
        return fake.branches[revision]

    def dataset_info(self, repository, *, revision, timeout):
        root = branch(repository, revision)
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def get_hf_file_metadata(url, timeout):
        assert url.startswith("https://huggingface.co/datasets/o/tickets/resolve/") and url.endswith(".parquet")
        if fake.gated:
            raise refused(errors.GatedRepoError)

    def hf_hub_download(repository, name, *, repo_type, revision):
        assert repo_type == "dataset"
        local = fake.cache / revision / name
        if not local.exists():
            source = branch(repository, revision) / name
            local.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, local)
            fake.downloads.append(name)
        return str(local)

    def snapshot_download(repository, *, repo_type, revision, local_files_only):
        assert local_files_only and repo_type == "dataset"
        if not (fake.cache / revision).is_dir():
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(fake.cache / revision)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", get_hf_file_metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fake.branches["main"] = tmp_path / "main"
    put(fake.branches["main"], "data/train-00000-of-00001.parquet", [{"question": f"q{i}", "id": i} for i in range(3)])
    put(fake.branches["main"], "data/test-00000-of-00001.parquet", [{"question": "held out", "id": 9}])
    (fake.branches["main"] / "README.md").write_text("a card")
    return fake


def texts(path):
    return {split: [turns[0][1] for turns in pairs.prompts] for split, pairs in own.read_by_split(path).items()}


def test_a_column_is_read_with_the_splits_of_its_files(fake_hub):
    assert texts("o/tickets:question") == {"test": ["held out"], "train": ["q0", "q1", "q2"]}
    assert sorted(fake_hub.downloads) == ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    assert [turns[0][1] for turns in own.read_rows("o/tickets:question", "test").prompts] == ["held out"]
    assert len(fake_hub.downloads) == 2  # the second time from the cache


def test_whole_rows_are_read_with_the_splits_of_their_files(fake_hub):
    put(fake_hub.branches["main"], "data/train-00000-of-00001.parquet", [{"chosen": CHAT, "rejected": [CHAT[0], SO]}])
    put(fake_hub.branches["main"], "data/test-00000-of-00001.parquet", [{"messages": CHAT, "split": "train"}])
    assert own.hub_place("hub:o/tickets") == "o/tickets" and own.hub_place("hub:tickets") is None
    read = pairs.read_pairs("jsonl", "hub:o/tickets")
    assert [tuple(pair) for pair in read.pairs] == [("yes?", "\n\nHuman: yes? \n\nAssistant:", "no", "so", "", "train")]
    assert own.read_answers("hub:o/tickets") == [((("user", "yes?"),), "no")] * 2
    assert texts("hub:o/tickets") == {"test": ["yes?"], "train": ["yes?"]}


def test_without_network_the_cache_is_read(fake_hub):
    first = texts("o/tickets:question")
    fake_hub.error = OSError("no route to host")
    assert texts("o/tickets:question") == first
    shutil.rmtree(fake_hub.cache)
    with pytest.raises(ConnectionError, match=r"o/tickets is not in .* cache, and the hub does not answer \(no route"):
        own.read_rows("o/tickets:question")


def test_the_converted_branch_goes_first_and_its_configurations_are_named(fake_hub, tmp_path):
    branch = fake_hub.branches["refs/convert/parquet"] = tmp_path / "converted"
    put(branch, "en/partial-train/0000.parquet", [{"talk": CHAT}, {"talk": CHAT[:1]}, {"talk": None}, {"talk": []}])
    put(branch, "en/test_sft/0000.parquet", [{"talk": [*CHAT, {"role": "user", "content": " so? "}]}])
    put(branch, "de/train/0000.parquet", [{"talk": CHAT}])
    with pytest.raises(
        FileNotFoundError, match="has several configurations; it has de, en. Name one: o/tickets/de:COLUMN"
    ):
        own.read_rows("o/tickets:talk")
    with pytest.raises(FileNotFoundError, match="has no configuration fr"):
        own.read_rows("o/tickets/fr:talk")
    result = own.read_by_split("o/tickets/en:talk")
    conversation = (("user", "yes?"), ("assistant", "no"), ("user", "so?"))
    assert {split: pairs.prompts for split, pairs in result.items()} == {
        "train": [(("user", "yes?"),)] * 2, "test": [conversation],
    }  # fmt: skip
    assert own.read_answers("o/tickets/en:talk") == [((("user", "yes?"),), "no")]


def test_a_refusal_says_what_to_do(fake_hub):
    with pytest.raises(FileNotFoundError, match="There is no o/ticket: no such path here, and no such data set"):
        own.read_rows("o/ticket:question")
    fake_hub.gated = True
    with pytest.raises(
        FileNotFoundError, match="is gated. Accept its terms at https://huggingface.co/datasets/o/tickets"
    ):
        own.read_rows("o/tickets:question")
    assert not fake_hub.downloads


def test_an_unknown_column_and_one_of_another_type_are_named(fake_hub):
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet has no column 'text'; it has question, id"):
        own.read_rows("o/tickets:text")
    with pytest.raises(ValueError, match="the column 'id' holds int; prompts are texts, or lists"):
        own.read_rows("o/tickets:id")


def test_a_data_set_without_parquet_says_so(fake_hub, tmp_path):
    fake_hub.branches["main"] = tmp_path / "empty"
    fake_hub.branches["main"].mkdir()
    with pytest.raises(FileNotFoundError, match="has no parquet files on the hub"):
        own.read_rows("o/tickets:question")


def test_what_is_an_id_and_what_a_path(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    assert own.hub_place("o/tickets:q") == "o/tickets" and own.hub_place("o/tickets/en:q") == "o/tickets/en"
    assert own.hub_place("o/tickets") is None and own.hub_place("a/b/c/d:q") is None and own.hub_place("./o:q") is None
    write(tmp_path / "o" / "tickets" / "a.jsonl", [{"q": "here", "prompt": "other"}])
    assert own.hub_place("o/tickets:q") is None and texts("o/tickets:q") == {"": ["here"]}
    write(tmp_path / "a:b", [{"prompt": "a name with a colon"}])
    assert texts("a:b") == {"": ["a name with a colon"]}
    with pytest.raises(ValueError, match=r"a\.jsonl:1 has no column 'x'; it has q, prompt"):
        own.read_rows("o/tickets:x")
    with pytest.raises(FileNotFoundError, match="of a data set on the hub by OWNER/NAME:COLUMN"):
        own.read_rows("o/other")


def test_the_doctor_asks_the_hub_and_downloads_nothing(fake_hub, chat_model):
    c = base.default()
    changes = {
        "task": "assistant", "policy.source": str(chat_model), "data.path": "o/tickets:question",
        "reward.sources": ("judge:Is it kind?", "judge:Is it short?"), "data.prompt_length": 64, "batch_size": 2,
    }  # fmt: skip
    c.update_from_flattened_dict(changes)
    [published] = doctor.data(c)
    assert published.status == "fail" and "--config.data.format=own" in published.advice
    c.data.format = "own"
    [data] = doctor.data(c)
    assert data.status == "ok" and "2 parquet files on the hub" in data.detail and not fake_hub.downloads
    assert not list(prompts.prompts(c)) and doctor.missing(c) == []
    fake_hub.gated = True
    assert [finding.name for finding in doctor.missing(c)][:1] == ["data"]
    assert "is gated" in doctor.missing(c)[0].detail
    fake_hub.gated = False
    hub.download("o/tickets")
    fake_hub.error = OSError("no route")
    [data], [splits] = doctor.data(c), prompts.prompts(c)
    assert data.status == "ok" and "in the cache" in data.detail
    assert "3 prompts to train on, 1 to evaluate on" in splits.detail
