"""What a run reads besides its configuration: each change is named and refused before anything is written, or accepted."""

import json
import re
import shutil

import numpy as np
import pytest

from meal_jax import build, inputs, train
from meal_jax import config as base
from meal_jax.rewards.code_files import code_files
from meal_jax.runtime import identity
from meal_jax.saved_run import read_config
from tests.train_test import one_device, small  # noqa: F401 - every run here is on one device

REWARD = """
def letters(prompts, responses):
    return [{} * len(response) for response in responses]
"""


def snapshot(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def recorded(workdir):
    return json.loads((workdir / "inputs.json").read_text())


@pytest.fixture
def begun(tmp_path):
    """A workdir with a checkpoint at step 4 and the record of its inputs."""
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "inputs.json").write_text(json.dumps({"since_step": 0, "inputs": BEFORE, "accepted": []}))
    return tmp_path


BEFORE = {
    "code of reward a": {"mine.py": "1" * 64},
    "policy weights": {"model.safetensors": "sampled " + "2" * 64},
    "training prompts": {"token ids and texts": "3" * 64},
}


def accepting(code=""):
    config = base.default()
    config.checkpoint.accept_inputs = code
    return config


def test_a_run_whose_reward_changed_is_refused_by_name_and_resumes_where_that_is_accepted(tmp_path):
    """Its metrics.jsonl is cut in between, which takes nothing from the tokens sampled that are reported."""
    code, workdir = tmp_path / "mine.py", tmp_path / "run"
    code.write_text(REWARD.format(1))
    changes = {
        "objectives": ("only",), "reward.sources": (f"python:{code}:letters",), "method": "static", "tensorboard": False,
        "eval.every": 2,
    }  # fmt: skip
    config = small(steps=4, **changes)
    train.run(config, str(workdir))
    assert recorded(workdir)["inputs"]["code of reward only"].keys() == {"mine.py"}
    assert recorded(workdir)["inputs"].keys() == {"code of reward only", "training prompts"}
    first_rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    code.write_text(REWARD.format(2))
    before, more = snapshot(workdir), small(steps=6, **changes)
    with pytest.raises(
        identity.AnotherRunError, match=r"code of reward only: mine\.py changed \(\w{12}… → "
    ) as refusal:
        train.run(more, str(workdir))
    assert snapshot(workdir) == before
    (workdir / "metrics.jsonl").write_text(json.dumps(first_rows[0]) + '\n{"step": 1, "respon')
    more.checkpoint.accept_inputs = re.search(r"accept_inputs=(\w+)", str(refusal.value))[1]
    result = train.run(more, str(workdir))["static"]
    [accepted] = recorded(workdir)["accepted"]
    assert accepted["before_step"] == 4 and accepted["changed"].keys() == {"code of reward only"}
    assert recorded(workdir)["inputs"]["code of reward only"] == {"mine.py": inputs.of_file(code)}

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 5, 6]
    lengths = [row["response/length"] for row in (*first_rows[:4], *rows[1:3])]
    assert result["budget"]["rollout_tokens"] == round(4 * 2 * sum(lengths))
    spent = {h["step"]: h["budget"]["rollout_tokens"] for h in result["history"]}
    assert spent == {step: round(4 * 2 * sum(lengths[:step])) for step in (0, 2, 4, 6)}


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("policy weights", "model.safetensors", r"policy weights: model\.safetensors changed \(2{12}… → 9{12}…\)"),
        ("training prompts", "token ids and texts", "training prompts: token ids and texts changed"),
        ("code of reward a", "helper", "code of reward a: helper is new"),
    ],
)
def test_each_change_is_named_and_its_own_code_accepts_it(begun, name, part, says):
    now = BEFORE | {name: BEFORE[name] | {part: "9" * 64}}
    with pytest.raises(identity.AnotherRunError, match=says) as refusal:
        inputs.need_same(begun, now, accepting())
    code = re.search(r"accept_inputs=(\w+)", str(refusal.value))[1]
    found = inputs.need_same(begun, now, accepting(code))
    assert found["inputs"] == now and found["changed"].keys() == {name}
    with pytest.raises(identity.AnotherRunError):  # it is the code of that change alone
        inputs.need_same(begun, BEFORE | {name: BEFORE[name] | {part: "8" * 64}}, accepting(code))
    with inputs.recorded(begun, 4, found):
        pass
    assert inputs.need_same(begun, now, accepting())["changed"] == {}
    assert recorded(begun)["accepted"] == [{"before_step": 4, "after_error": None, "changed": found["changed"]}]


def test_after_an_error_the_code_of_rewards_may_be_mended_and_nothing_else(begun):
    mended = BEFORE | {"code of reward a": {"mine.py": "7" * 64}}
    with pytest.raises(ValueError, match="^a reward fails$"):
        with inputs.recorded(begun, 4, inputs.need_same(begun, BEFORE, accepting())):
            raise ValueError("a reward fails")
    with pytest.raises(identity.AnotherRunError, match="policy weights"):
        inputs.need_same(begun, mended | {"policy weights": {"model.safetensors": "7"}}, accepting())
    found = inputs.need_same(begun, mended, accepting())
    with pytest.raises(KeyboardInterrupt):
        with inputs.recorded(begun, 4, found):
            raise KeyboardInterrupt
    [accepted] = recorded(begun)["accepted"]
    assert accepted["after_error"] == "a reward fails" and "failed" not in recorded(begun)
    with pytest.raises(identity.AnotherRunError):
        inputs.need_same(begun, BEFORE, accepting())


def test_runs_without_a_record_or_a_checkpoint_begin_one_and_a_damaged_record_is_refused(begun):
    now = {"code of reward a": {"mine.py": "9" * 64}}
    (begun / "inputs.json").write_text('{"inputs"')
    with pytest.raises(ValueError, match=r"inputs\.json is damaged: bring it back, or delete it"):
        inputs.need_same(begun, now, accepting())
    (begun / "inputs.json").unlink()
    found = inputs.need_same(begun, now, accepting())
    with inputs.recorded(begun, 4, found):
        assert recorded(begun) == {"since_step": 4, "inputs": now, "accepted": []}
    (begun / "checkpoints" / "4").rmdir()
    with inputs.recorded(begun, 0, inputs.need_same(begun, BEFORE, accepting())):
        assert recorded(begun) == {"since_step": 0, "inputs": BEFORE, "accepted": []}


def test_heads_prompts_weights_and_tokenizer_of_a_run_on_text_are_told_apart(assistant_run, chat_model, tmp_path):
    source = assistant_run("text")
    shutil.copytree(source / "data", tmp_path / "data")
    shutil.copytree(chat_model, tmp_path / "model")
    shutil.copy(source / "heads.safetensors", tmp_path)
    places = {"data.path": "data", "reward.heads": "heads.safetensors", "policy.source": "model"}
    config = read_config(source, [f"{field}={tmp_path / name}" for field, name in places.items()])

    def now():
        task = build.build_task(config)
        return inputs.digests(config, {"training prompts": task.train})

    before = now()
    assert before.keys() == {
        "training prompts", "policy weights", "policy tokenizer", "heads of reward harmless", "heads of reward helpful",
    }  # fmt: skip
    assert set(before["policy weights"]) == {"config.json", "model.safetensors"}
    assert "tokenizer.json" in before["policy tokenizer"] and now() == before
    heads = {"heads of reward harmless", "heads of reward helpful"}
    for pattern, change, changed in (
        ("data/*/test.jsonl", lambda text: text.replace(b"Human: 24", b"Human: 25"), {"training prompts"}),
        ("heads.safetensors", lambda data: data[:-1] + b"\x01", heads),
        ("model/model.safetensors", lambda data: data[:-1] + b"\x01", {"policy weights"}),
        ("model/tokenizer_config.json", lambda text: text + b"\n", {"policy tokenizer"}),
    ):
        whole = {path: path.read_bytes() for path in tmp_path.glob(pattern)}
        for path in whole:
            path.write_bytes(change(whole[path]))
        assert inputs.differences(before, now()).keys() == changed
        for path in whole:
            path.write_bytes(whole[path])


def test_a_large_file_is_read_in_samples_that_show_its_size_its_ends_and_every_stretch(tmp_path, monkeypatch):
    for name, value in {"WHOLE": 1000, "STRIDE": 500, "BLOCK": 20}.items():
        monkeypatch.setattr(inputs, name, value)
    path, data = tmp_path / "weights", np.random.default_rng(0).bytes(1_790)

    def digest(changed):
        path.write_bytes(changed)
        return inputs.of_file(path)

    sampled = digest(data)
    assert sampled.startswith("sampled ") and digest(data) == sampled
    for first, length in ((0, 1), (1_789, 1), (100, 500), (1_260, 500)):
        assert digest(data[:first] + bytes(length) + data[first + length :]) != sampled
    assert digest(data + b"1") != sampled
    assert digest(data[:1000]) == inputs.hashlib.sha256(data[:1000]).hexdigest()


def test_code_is_its_file_and_the_users_modules_that_it_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "mine.py": "import json\nimport numpy as np\nfrom mylib.parts import count\n\ndef f(p, r):\n    import late_one\n",
        "mylib/__init__.py": "", "mylib/parts.py": "from . import words\nfrom meal_jax import chips\ncount = 1\n",
        "mylib/words.py": "import mylib.parts, absent_module\n", "mylib/other.py": "", "late_one.py": "x = (",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    expected = {"mylib": "mylib/__init__.py", "mylib.parts": "mylib/parts.py", "mylib.words": "mylib/words.py"}
    found = code_files(f"{tmp_path / 'mine.py'}:f")
    assert found == {n: tmp_path / f for n, f in (expected | {"mine.py": "mine.py", "late_one": "late_one.py"}).items()}
    assert code_files("mylib.parts:count") == {name: tmp_path / file for name, file in expected.items()}
    assert code_files("builtins:len") == {}
