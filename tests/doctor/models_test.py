"""Directories that are broken in one way each, and the doctor's line about it."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from meal_jax import config as base
from meal_jax.doctor import examine, models
from meal_jax.hf import pretrained

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
V = 320  # of the fixture's model


@pytest.fixture
def config(chat_model, tmp_path):
    """Of a benchmark on a copy of a local model and on prompts of one's own."""
    shutil.copytree(chat_model, tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "please yes {i}"}}\n' for i in range(40)))
    c = base.default()
    changes = {
        "task": "assistant", "policy.source": str(tmp_path / "model"), "data.path": str(tmp_path / "rows.jsonl"),
        "data.format": "own", "data.prompt_length": 64, "stage": "sft",
    }  # fmt: skip
    c.update_from_flattened_dict(changes)
    return c


def edit(directory, name="config.json", **entries):
    path = directory / name
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | entries).items() if v is not None}))


def rewrite(directory, change):
    save_file(change(load_file(directory / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})


def grow(directory, special, until=V):
    """Adds tokens to the tokenizer until one has the id `until`; that one is "<tool>"."""
    tokenizer = pretrained.load_tokenizer(directory)
    missing = until - len(tokenizer)
    tokenizer.add_tokens([f"<unused{i}>" for i in range(missing)])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", special=special, normalized=False)], special_tokens=special)
    assert tokenizer.convert_tokens_to_ids("<tool>") == until
    tokenizer.save_pretrained(directory)


def template(directory, text):
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    edit(directory, "tokenizer_config.json", chat_template=text)


def m1_unused(directory, config):
    grow(directory, special=True)


def m1_end(directory, config):
    text = "{% for m in messages %}{{ m['content'] + '<tool>' }}{% endfor %}"
    grow(directory, special=True)
    template(directory, text)


def m2(directory, config):
    grow(directory, special=False)
    with open(config.data.path, "a") as rows:
        rows.write("".join(f'{{"prompt": "please <tool> {i}"}}\n' for i in range(40)))  # some in every split


def m2_another_vocabulary(directory, config):
    edit(directory, vocab_size=264)
    rewrite(directory, lambda t: {k: v[:264] if v.shape[0] == V else v for k, v in t.items()})


def m4(directory, config):
    edit(directory, tie_word_embeddings=True)
    rewrite(directory, lambda t: t | {"lm_head.weight": np.ones_like(t["model.embed_tokens.weight"])})


def m5(directory, config):
    template(directory, REFUSES + "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}")
    config.data.system = "Be brief."


def m7(directory, config):
    template(directory, [{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}])


def no_template(directory, config):
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    edit(directory, "tokenizer_config.json", chat_template=None)


def open_ended(directory, config):
    template(directory, "{% for m in messages %}{{ m['content'] }} {% endfor %}")


def m11_adapter(directory, config):
    (directory / "config.json").unlink()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def m11_no_config(directory, config):
    (directory / "config.json").unlink()


def m11_no_architecture(directory, config):
    edit(directory, architectures=["MambaForCausalLM"])


def m11_split_gguf(directory, config):
    gguf = pytest.importorskip("gguf")
    path = directory / "model-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config.policy.source = str(path)


def missing_tensor(directory, config):
    rewrite(directory, lambda t: {k: v for k, v in t.items() if k != "model.layers.1.mlp.up_proj.weight"})


def misshapen_tensor(directory, config):
    edit(directory, intermediate_size=25)


def quantized_tensor(directory, config):
    rewrite(directory, lambda t: t | {"model.norm.weight": t["model.norm.weight"].astype(np.int8)})


def cut_short(directory, config):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def no_tokenizer(directory, config):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()


def damaged_tokenizer(directory, config):
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')


def no_end_token(directory, config):
    edit(directory, "tokenizer_config.json", eos_token=None, pad_token=None, extra_special_tokens=None)


# What breaks a directory → status and name of the doctor's line, and what is in it.
BROKEN = {
    m1_unused: ("warn", "token ids", "V = 320 rows are fewer than the tokenizer's ids (1 past them: <tool>); none is in the"),
    m1_end: ("fail", "token ids", "The end of a turn has the token '<tool>' of id 320, and the"),
    m2: ("fail", "token ids", "' … has the token '<tool>' of id 320"),
    m2_another_vocabulary: ("fail", "token ids", "V = 264 rows"),
    m4: ("warn", "policy", "says tie_word_embeddings, and the weights hold an lm_head.weight that is not the embedding"),
    m5: ("fail", "chat template", "System role not supported. A template without a system role needs config.data.system=''"),
    m7: ("fail", "chat template", "named rag, tool_use, and none is named default"),
    no_template: ("fail", "chat template", "has no chat template"),
    open_ended: ("fail", "chat template", "does not close an assistant's turn with a special token"),
    m11_adapter: ("fail", "policy", "holds a PEFT adapter (of org/base), not a model. Merge it"),
    m11_no_config: ("fail", "policy", "has no config.json: it is not a Hugging Face model directory. It holds weights"),
    m11_no_architecture: ("fail", "policy", "architecture MambaForCausalLM"),
    m11_split_gguf: ("fail", "policy", "is part 2 of 3 of a GGUF file that was split. Join the parts"),
    missing_tensor: ("fail", "policy", "missing: model.layers.1.mlp.up_proj.weight"),
    misshapen_tensor: ("fail", "policy", "model.layers.0.mlp.up_proj.weight [24, 16] instead of [25, 16]"),
    quantized_tensor: ("fail", "policy", "not floating point: model.norm.weight (I8)"),
    cut_short: ("fail", "policy", "is cut short or damaged"),
    no_tokenizer: ("fail", "tokenizer", "has no tokenizer that can be read"),
    damaged_tokenizer: ("fail", "tokenizer", "has no tokenizer that can be read"),
    no_end_token: ("fail", "tokenizer", "neither a pad nor an end token"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_a_broken_directory_is_named_and_is_no_ok_policy(config, tmp_path, fault):
    fault(tmp_path / "model", config)
    status, name, says = BROKEN[fault]
    lines = list(models.models(config))
    wrong = [line for line in lines if line.status not in ("ok", "unknown")]
    assert [(line.status, line.name) for line in wrong] == [(status, name)], lines
    assert says in wrong[0].detail and wrong[0].advice
    assert not any(line.status == "ok" and line.name == "policy" for line in lines)


def test_a_whole_directory_is_ok_in_every_part(config):
    lines = list(models.models(config))
    assert [(line.status, line.name) for line in lines] == [
        ("ok", name) for name in ("policy", "tokenizer", "chat template", "token ids")
    ]
    assert "end '<|im_end|>' (2)" in lines[1].detail and "system ''" in lines[2].detail


def test_a_template_that_inserts_no_system_message_is_rendered_with_the_runs(config, tmp_path):
    """Of several named templates by the default one, without a system message, with the run's date (M5 to M8)."""
    turns = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    dated = REFUSES + "{{ strftime_now('%Y') }}" + turns
    template(tmp_path / "model", [{"name": "default", "template": dated}, {"name": "tool_use", "template": "x"}])
    config.data.date = "2019-01-01"
    (line,) = (line for line in models.models(config) if line.name == "chat template")
    assert line.status == "ok" and "system None" in line.detail and line.detail.endswith("date 2019-01-01")


def test_prompts_that_a_run_leaves_out_are_no_fault(config, tmp_path):
    m2(tmp_path / "model", config)
    config.data.prompt_length = 10
    assert [line.status for line in models.models(config) if line.name == "token ids"] == ["warn"]
    config.data.path = str(tmp_path / "nothing")
    assert [line.status for line in models.models(config) if line.name == "token ids"] == ["unknown"]


def test_what_is_on_the_hub_alone_is_unknown(config, monkeypatch):
    monkeypatch.setattr(models.files, "on_hub", lambda name, *_: models.ok(name, "on the hub"))
    monkeypatch.setattr(models.files, "cached", lambda *_: None)
    config.policy.source = "owner/model"
    assert [(line.status, line.name) for line in models.models(config)] == [("ok", "policy"), ("unknown", "policy")]


@pytest.fixture(scope="module")
def reward_model(chat_tokenizer, tmp_path_factory):
    """Directory of a tiny GPT-2 with one logit and `chat_tokenizer`."""
    from flax import traverse_util

    from meal_jax.classifiers import classifier

    directory = tmp_path_factory.mktemp("reward")
    entries = {
        "architectures": ["GPT2ForSequenceClassification"], "model_type": "gpt2", "vocab_size": V, "n_embd": 16, "n_layer": 1,
        "n_head": 2, "n_positions": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
    }  # fmt: skip
    settings = classifier.parse(entries, directory / "config.json")
    shapes = classifier.param_shapes(settings)
    params = {path: np.full(leaf.shape, 0.1, leaf.dtype) for path, leaf in shapes.items()}
    classifier.save(directory, settings, traverse_util.unflatten_dict(params, sep="/"))
    edit(directory, **entries)
    chat_tokenizer.save_pretrained(directory)
    return directory


def r_label(directory):
    return "humor", "has 1 labels, and 'humor' reads label 1"


def r_name(directory):
    edit(directory, id2label={"0": "harmful"})
    return "harmless", "its id2label says 0 'harmful', and 'harmless' reads label 0"


def r_ids(directory):
    edit(directory, vocab_size=280)
    rewrite(directory, lambda t: {k: v[:280] if v.shape[0] == V else v for k, v in t.items()})
    return "harmless", "its embedding has 280 rows, for ids 0 to 279"


def r_tensors(directory):
    edit(directory, n_layer=2)
    return "harmless", "missing: transformer.h.1.attn.c_attn.bias"


def r_tokenizer(directory):
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    return "harmless", "has no tokenizer that can be read"


@pytest.mark.parametrize("fault", [None, r_label, r_name, r_ids, r_tensors, r_tokenizer])
def test_a_reward_models_parts_are_looked_at(config, reward_model, tmp_path, fault):
    directory = tmp_path / "reward"
    shutil.copytree(reward_model, directory)
    preset, says = fault(directory) if fault else ("harmless", "")
    config.stage, config.objectives = "align", ("mine", "asked")
    config.reward.sources = (f"{preset}@{directory}", "judge:Is it polite?")
    lines = {line.name: line for line in models.models(config) if line.name.startswith("reward")}
    assert lines["reward mine"].status == ("fail" if fault else "ok") and says in lines["reward mine"].detail
    assert lines["reward asked"].status == "ok"


def test_a_judge_without_a_template_and_heads_of_another_format_are_named(config, tmp_path, assistant_run):
    shutil.copytree(tmp_path / "model", tmp_path / "judge")
    no_template(tmp_path / "judge", config)
    config.stage, config.objectives = "align", ("harmless", "asked")
    config.reward.sources, config.reward.judge = ("heads", "judge:Is it polite?"), str(tmp_path / "judge")
    config.reward.heads = str(assistant_run("none") / "heads.safetensors")
    config.data.system = "Be brief."
    wrong = {line.name: line.detail for line in models.models(config) if line.status == "fail"}
    assert wrong.keys() == {"heads", "reward asked"}
    assert "system 'Be brief.'" in wrong["heads"] and "no chat template" in wrong["reward asked"]


def test_the_doctor_looks_before_it_compiles(config, tmp_path, monkeypatch):
    def compiled(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(examine.devices, "compile_collective", compiled)
    monkeypatch.setattr(examine.devices, "compile_small_step", compiled)
    m2(tmp_path / "model", config)
    config.batch_size = config.eval.batch_size = 16
    lines = {line.name: line.status for line in examine.examine(config, str(tmp_path / "run"))}
    assert lines["token ids"] == "fail" and "policy" not in lines and lines["step"] == "unknown"


def test_what_the_doctor_refuses_a_run_refuses_in_the_same_words(config, tmp_path):
    from meal_jax import build

    m2(tmp_path / "model", config)
    (line,) = (line for line in models.models(config) if line.status == "fail")
    with pytest.raises(ValueError) as error:
        build.build_task(config)
    same = line.detail.partition("has the token")[2]
    assert same and same in str(error.value)
