"""What people get wrong, each with its message. A line: what is wrong, and what the message says. None of it compiles.

Another mistake is another line of CONFIGS, ROWS, REWARDS, WEIGHTS, WORKDIRS or MESHES.
"""

import json
import math

import jax
import numpy as np
import pytest

from configs import own as own_config
from meal_jax import build, compare, train
from meal_jax import config as base
from meal_jax.data import overlap, own
from meal_jax.hf import pretrained
from meal_jax.limits import LIMITS
from meal_jax.rewards import python, text

NAN, INF = math.nan, math.inf


def configured(fields):
    config = base.default()
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


CONFIGS = [
    ({"steps": 0}, r"config\.steps=0 must be a finite number at least 1"),
    ({"steps": -5}, r"config\.steps=-5 must be"),
    ({"optim.lr": 0.0}, r"config\.optim\.lr=0\.0 must be a finite number above 0"),
    ({"optim.lr": -1.0}, r"config\.optim\.lr=-1"),
    ({"optim.lr": NAN}, r"config\.optim\.lr=nan must be a finite number"),
    ({"optim.lr": INF}, r"config\.optim\.lr=inf must be a finite number"),
    ({"optim.net_lr": -1e-3}, r"config\.optim\.net_lr=-0\.001"),
    ({"optim.clip": 0.0}, r"config\.optim\.clip=0\.0"),
    ({"optim.b2": 1.0}, r"config\.optim\.b2=1\.0 must be .* below 1"),
    ({"optim.final_lr_fraction": 2.0}, r"final_lr_fraction=2\.0 must be .* at most 1"),
    ({"optim.warmup": -1}, r"config\.optim\.warmup=-1"),
    ({"checkpoint.every": 0}, r"config\.checkpoint\.every=0"),
    ({"checkpoint.keep": 0}, r"config\.checkpoint\.keep=0"),
    ({"eval.batch_size": 0}, r"config\.eval\.batch_size=0"),
    ({"eval.divisions": 0}, r"config\.eval\.divisions=0"),
    ({"eval.every": 0}, r"config\.eval\.every=0"),
    ({"eval.bootstrap": 0}, r"config\.eval\.bootstrap=0"),
    ({"eval.temperature": -0.5}, r"config\.eval\.temperature=-0\.5"),
    ({"eval.top_p": 0.0}, r"config\.eval\.top_p=0\.0 must be .* above 0 and at most 1"),
    ({"eval.top_p": 1.5}, r"config\.eval\.top_p=1\.5"),
    ({"eval.top_k": -1}, r"config\.eval\.top_k=-1"),
    ({"eval.reference": (0.0, NAN)}, r"config\.eval\.reference=\(0\.0, nan\) must be \(\) or 2 finite numbers"),
    ({"eval.prompts": 0}, r"config\.eval\.prompts=0"),
    ({"sampling.temperature": -1.0}, r"config\.sampling\.temperature=-1\.0 must be above 0"),
    ({"sampling.top_p": 1.5, "meal.meta": "likelihood"}, r"config\.sampling\.top_p=1\.5"),
    ({"sampling.top_p": 0.5, "meal.net": False, "method": "morlhf"}, "morlhf learn by PPO, whose ratio"),
    ({"sampling.top_k": 3, "meal.meta": "likelihood", "compare_with": ("soups", "mod")}, "mod, soups learn by PPO"),
    ({"meal.tau": NAN}, r"config\.meal\.tau=nan"),
    ({"meal.lam": NAN}, r"config\.meal\.lam=nan"),
    ({"meal.rho": -1.0}, r"config\.meal\.rho=-1"),
    ({"meal.meta_fraction": float("inf")}, r"config\.meal\.meta_fraction=inf must be a finite number"),
    ({"micro.score": 0}, r"config\.micro\.score=0 must be a finite number at least 1, or None"),
    ({"seed": 2**32}, r"config\.seed=4294967296 must be .* at most"),
    ({"objectives": ("a,b",)}, r"has a comma in a name: names are given as --config\.objectives="),
    ({"objectives": ("a", "a")}, r"config\.objectives=\('a', 'a'\) must be names that differ"),
    ({"objectives": ("a", "")}, r"config\.objectives=\('a', ''\)"),
    ({"method": "ppo"}, r"config\.method='ppo' is not one of meal, static"),
    ({"compare_with": ("static", "dop")}, r"config\.compare_with='dop' is not one of"),
    ({"policy.lora_dropout": 1.0}, r"config\.policy\.lora_dropout=1\.0"),
    ({"policy.heads": 3}, r"config\.policy\.heads=3 must divide config\.policy\.width=64"),
    ({"policy.remat": "all"}, r"config\.policy\.remat='all' is not one of none, dots, full"),
    ({"policy.param_dtype": "int8"}, r"config\.policy\.param_dtype='int8'"),
    ({"conditioning.slots": 0}, r"config\.conditioning\.slots=0"),
    ({"mesh.fsdp": 0}, r"config\.mesh\.fsdp=0 must be .*, or None"),
    ({"ric.low_quantile": 0.9, "ric.high_quantile": 0.1}, r"low_quantile=0\.9 must be below"),
    ({"seed": -1}, r"config\.seed=-1"),
    ({"reward.sources": ("heads",)}, "names 1 rewards"),
    ({"objectives": ("a", "a ")}, r"config\.objectives=\('a', 'a '\) must be names that differ, with no space around"),
    ({"objectives": ("a", "b\nc")}, r"config\.objectives=.* must be names that differ"),
    ({"objectives": ("a", 2)}, r"config\.objectives=\('a', 2\) must be names that differ"),
    ({"objectives": (), "conditioning.kind": "adapter", "policy.lora_rank": 4}, r"config\.objectives is empty"),
    ({"batch_size": 0}, r"config\.batch_size=0 must be even and above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), CONFIGS)
def test_a_configuration(fields, says):
    with pytest.raises(ValueError, match=says):
        base.check(configured(fields))


BUILDS = [
    ({"eval.prompts": 4}, r"config\.eval\.prompts=4: the toy .* a multiple of 16"),
    ({"objectives": tuple("abcdefghijklmnop")}, "16 rewards: the toy has 10 at most"),
    ({"task": "toy_base"}, r"config\.task='toy_base' is not one of"),
    ({"batch_size": 4096}, r"fewer than the 4096 needed \(config\.batch_size for training"),
]


@pytest.mark.parametrize(("fields", "says"), BUILDS)
def test_a_benchmark(fields, says):
    with pytest.raises(ValueError, match=says):
        build.build_task(configured(fields))


def test_every_number_of_the_configuration_has_its_limits_and_its_default_is_within():
    config = base.default()
    numbers = {
        f"{section}.{name}" if section else name
        for section, values in {"": config, **{n: v for n, v in config.items() if hasattr(v, "items")}}.items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    known = {f"{section}.{name}" if section else name for section, fields in LIMITS.items() for name in fields}
    assert numbers <= known
    base.check(config)


ROWS = [
    (
        {"prompt": "a", "split": "holdout"},
        "rows.jsonl:2 has the split 'holdout', which is none of train, test, validation",
    ),
    ({"prompt": "a", "split": 3}, "rows.jsonl:2 has the split 3"),
    ({"prompt": "a", "Split": "holdout"}, "rows.jsonl:2 has the split 'holdout'"),
    ({"prompt": "a", "split": ["test"]}, r"rows.jsonl:2 has the split \['test'\]"),
    ({"prompt": "a", "split": True}, "rows.jsonl:2 has the split True"),
    ({"prompt": ""}, "rows.jsonl:2 has an empty prompt"),
    ({"prompt": None, "messages": None}, "rows.jsonl:2 must have one of prompt and messages"),
    ({"messages": [{"role": "human", "content": "a"}]}, "rows.jsonl:2 has the roles human"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        r"rows.jsonl:2: messages\[0\] has no text in content",
    ),
    ([{"prompt": "a"}], r"rows.jsonl:2 is a JSON list; .* jq -c '\.\[\]'"),
    ('{"prompt": "a"},', "rows.jsonl:2 is not valid JSON .* Take the comma away"),
    ('{"prompt": "a",}', "rows.jsonl:2 is not valid JSON .* Take the comma away"),
    ({"text": "a"}, "rows.jsonl:2 must have one of prompt and messages"),
    ({"prompt": ["a"]}, "rows.jsonl:2 has no text in prompt"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "rows.jsonl:2 has the roles assistant"),
    ('{"prompt": "a"', "rows.jsonl:2 is not valid JSON"),
    ('{"prompt": "\\ud800"}', "rows.jsonl:2: prompt holds .* half of a surrogate pair"),
    (b'{"prompt": "\xff"}', "rows.jsonl is not UTF-8 text .line 2"),
]


@pytest.mark.parametrize(("row", "says"), ROWS)
def test_rows(row, says, tmp_path):
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=says):
        own.read_by_split(tmp_path / "rows.jsonl")


def write(folder, files):
    for name, rows in files.items():
        lines = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines)
    return folder


FILES = [
    ({"rows.csv": "prompt\na\n"}, "/rows.csv", r"rows.csv is no JSON lines\. Make it some: python -c"),
    ({"rows.txt": "a\n"}, "/rows.txt", "rows.txt is no JSON lines.*jq"),
    ({"rows.jsonl": "{\n"}, "", r"rows.jsonl:1 is not valid JSON .* jq -c \."),
    ({"train/a.jsonl": [{"prompt": "a"}]}, "", "it has train; directories in it are not read"),
    ({"rows.jsonl": [{"q": "a", "split": "holdout"}]}, ":q", "rows.jsonl:1 has the split 'holdout'"),
    (
        {"my_train.jsonl": [{"prompt": "a", "split": "test"}]},
        "",
        "my_train.jsonl says train: leave one of the two away",
    ),
]


@pytest.mark.parametrize(("written", "place", "says"), FILES)
def test_files(written, place, says, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        own.read_by_split(f"{write(tmp_path, written)}{place}")


SPLITS = [  # what two files of a row each are: the first, the second
    (("Train.jsonl", "TEST.jsonl"), ("train", "test")), (("train.jsonl", "dev.jsonl"), ("train", "validation")),
    (("my_train.jsonl", "my-eval.jsonl"), ("train", "test")), (("train-0.jsonl", "val_1.jsonl"), ("train", "validation")),
    (("testimonials.jsonl", "trainer_notes.jsonl"), ("", "")), (("stress_test_rows.jsonl", "train_test.jsonl"), ("", "")),
    (("Train/a.jsonl",), ("train",)),
]  # fmt: skip


@pytest.mark.parametrize(("names", "splits"), SPLITS)
def test_a_files_name_says_its_split_by_its_first_or_last_word(names, splits, tmp_path):
    write(tmp_path, {name: [{"prompt": name}] for name in names})
    read = own.read_by_split(tmp_path if "/" not in names[0] else tmp_path / "Train")
    prompts = {turns[0][1]: split for split, pairs in read.items() for turns in pairs.prompts}
    assert prompts == dict(zip(names, splits, strict=True))


def test_rows_of_ones_own_that_differ_from_a_held_out_one_in_case_or_space_alone_are_not_trained_on(tmp_path):
    rows = [{"prompt": f"Once number {i} there was", "split": "train"} for i in range(12)]
    rows += [{"q": None, "prompt": " ONCE  number 3 there\nwas", "messages": None, "SPLIT": " Test "}]
    write(tmp_path, {"rows.jsonl": rows})
    config = own_config.get_config("text")
    config.update_from_flattened_dict(
        {"data.path": str(tmp_path), "batch_size": 4, "objectives": ("dialogue", "cheerful")}
    )
    task = build.build_task(config)
    assert len(task.train.id) == 11 and task.test.text == ("ONCE  number 3 there\nwas",)
    assert overlap.of_prompts(task.train, task.test)["same_text"] == 0


REWARDS = [
    (None, ValueError, "returned NoneType"), ({}, ValueError, "returned dict"), ([1.0], ValueError, r"shape \[1\]"),
    ([1.0, "2"], ValueError, "row 1 is '2'"), ([1.0, NAN], FloatingPointError, "row 1, nan for 'second'"),
    ([INF, 1.0], FloatingPointError, "row 0, inf for 'first'"), ([1, 10**400], FloatingPointError, "row 1, inf for 'second'"),
    (np.ma.array([1.0, 2.0], mask=[0, 1]), FloatingPointError, "row 1, nan"), (np.ones((2, 1)), ValueError, r"shape \[2, 1\]"),
    ([1.0, -2e15], FloatingPointError, r"beyond ±1e\+15, too large to be normalised, .* row 1, -2.*e\+15 for 'second'"),
    (np.float32(1), ValueError, r"shape \[\] for 2"), (map(len, "ab"), ValueError, "returned map"),
    ({1.0, 2.0}, ValueError, "returned set"), (b"ab", ValueError, "returned bytes"), ([1j, 1j], ValueError, "row 0 is 1j"),
    (np.array(["a", "b"]), ValueError, "returned ndarray of <U1"), ([[1.0], [1.0, 2.0]], ValueError, "row 0 is .*, a list"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "error", "says"), REWARDS)
def test_a_reward(values, error, says):
    with pytest.raises(error, match=says):
        text.check("polite", values, ["first", "second"], "python:mine.py:f")


CODE = [
    (
        "def f(p, r)\n",
        ValueError,
        r"python:.*mine\.py:f: .*mine\.py cannot be imported: it raised SyntaxError at line 1",
    ),
    ("import not_there_at_all\n", ModuleNotFoundError, r"python:.*mine\.py:f: .* cannot be imported: No module named"),
    ("raise ValueError('bad file')\n", ValueError, r"cannot be imported: it raised ValueError: bad file"),
    ("import sys; sys.exit(2)\n", ValueError, r"cannot be imported: it raised SystemExit: 2"),
    ("f = 3\n", ValueError, "has no function f"),
    (
        "def f(p, r):\n    raise SystemExit(3)\n",
        ValueError,
        r"'mine' .* raised SystemExit at .*mine\.py:2: 3\. It was called",
    ),
    ("def f(p, r):\n    assert r == []\n", ValueError, r"raised AssertionError at .*mine\.py:2: without a message\."),
    ("def f(responses): pass\n", ValueError, "raised TypeError: f.. takes 1 positional argument but 2"),
]


@pytest.mark.parametrize(("code", "error", "says"), CODE)
def test_a_rewards_code(code, error, says, tmp_path):
    named = f"python:{tmp_path / 'mine.py'}:f"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(error, match=says):
        python.TextFunction(python.load(named.partition(":")[2], named), named, "mine")(["p"], ["r"])


def test_a_reward_that_changes_its_lists_changes_those_of_no_other():
    def drains(prompts, responses):
        prompts.clear()
        return [len(responses.pop()) for _ in range(len(responses))]

    prompts, responses = ["p", "q"], ["a", "bc"]
    assert python.TextFunction(drains, "python:mine.py:f", "mine")(prompts, responses) == [2, 1]
    assert (prompts, responses) == (["p", "q"], ["a", "bc"])


WEIGHTS = [
    ({}, r"config\.json"),
    ({"config.json": "{"}, "config.json"),
    ({"config.json": '{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}'}, "mamba|Mamba"),
]


@pytest.mark.parametrize(("written", "says"), WEIGHTS)
def test_weights(written, says, tmp_path):
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        pretrained.load_config(tmp_path)


WORKDIRS = [
    ("{", "config.json is not valid JSON"),
    ("[]", "config.json is not valid JSON of a configuration"),
    ('{"stepz": 1}', "a field stepz, which this version"),
    ('{"seed": 7}', r"config\.seed: 7 → 0"),
    ('{"model_type": "llama"}', "a field model_type, .* If it is another program's, give another --workdir"),
    ('{"beside": [], "optim": {"final": 0.5}}', r"config\.optim\.final_lr_fraction: 0\.5 → 0\.05"),
]


@pytest.mark.parametrize(("recorded", "says"), WORKDIRS)
def test_a_workdir(recorded, says, tmp_path):
    (tmp_path / "config.json").write_text(recorded)
    with pytest.raises(ValueError, match=says):
        train.run(base.default(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == recorded


LEFTOVERS = [  # what stands in a workdir without config.json
    ({"metrics.jsonl": "mine"}, "holds metrics.jsonl, and neither a config.json nor a checkpoint says of what run"),
    ({"pareto.json": '{"mine": 1}', "README.md": ""}, "holds pareto.json, and neither"),
    ({"compare.json": "{}"}, "holds compare.json, and neither"),
    ({"sft.json": "{}", "checkpoints/7/best.pt": ""}, "holds sft.json, and neither"),
]


@pytest.mark.parametrize(("written", "says"), LEFTOVERS)
def test_a_workdir_that_does_not_say_of_what_run_it_is(written, says, tmp_path):
    write(tmp_path, written)
    with pytest.raises(ValueError, match=says):
        train.run(base.default(), str(tmp_path))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(written)


def test_a_comparison_in_the_workdir_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run. .* Give the comparison a --workdir of its own"):
        compare.run(base.default(), str(tmp_path), ["meal"], 1)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match=r"run cannot be written to \(File exists\): .* another --workdir"):
        train.run(base.default(), str(tmp_path / "run"))


MESHES = [
    ({"mesh.data": 3}, r"Mesh data=3 .* does not fit 8 device"),
    ({"mesh.data": None, "mesh.fsdp": None}, r"at most one is None"),
    ({"mesh.data": 8, "batch_size": 6, "eval.batch_size": 64}, r"half of config\.batch_size"),
    ({"mesh.data": 8, "eval.batch_size": 12}, r"config\.eval\.batch_size"),
]


@pytest.mark.parametrize(("fields", "says"), MESHES)
def test_a_mesh(fields, says):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    with pytest.raises(ValueError, match=says):
        build.mesh_of(configured(fields))
