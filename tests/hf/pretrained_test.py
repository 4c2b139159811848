"""Hugging Face directories in and out: the policy's own tree, exact round trips, and what is said of bad ones."""

import dataclasses
import gc
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from meal_jax.data import chat as chats
from meal_jax.hf import families, pretrained
from meal_jax.hf.storage import INDEX, SINGLE
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import TransformerConfig
from meal_jax.runtime import sharding as runtime

SIZES = dict(
    vocab_size=29, width=16, layers=3, heads=4, kv_heads=2, head_dim=6, hidden=20, rope_base=500.0, norm_eps=1e-3
)
TIED = TransformerConfig(**SIZES)
UNTIED = TransformerConfig(**SIZES, tied=False)
Q1 = "model.layers.1.self_attn.q_proj.weight"
QWEN3 = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3")
GEMMA3 = dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text")
TOKENIZERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"


@pytest.fixture
def saved(tmp_path, random_params):
    """(directory, parameters) of an untied model that `save` wrote."""
    params = random_params(UNTIED)["transformer"]
    pretrained.save(tmp_path, UNTIED, params)
    return tmp_path, params


def rewrite(directory, change):
    """Applies a function to the dict of the directory's tensors and writes what it returns."""
    save_file(change(load_file(directory / SINGLE)), directory / SINGLE)


def edit_config(directory, **entries):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Reading.


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_loaded_tree_is_the_one_that_policy_init_makes(tmp_path, random_params, tied, param_dtype):
    config = TransformerConfig(**SIZES, tied=tied, param_dtype=param_dtype)
    pretrained.save(tmp_path, config, random_params(config)["transformer"])
    args = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2), jnp.int32)
    made = jax.eval_shape(Policy(config, Conditioning("prefix")).init, jax.random.key(0), *args)["params"][
        "transformer"
    ]
    loaded = jax.eval_shape(
        lambda: pretrained.load_params(tmp_path, pretrained.load_config(tmp_path, param_dtype=param_dtype))
    )
    assert loaded == made  # structure, shapes and types
    with_adapters = pretrained.load_config(tmp_path, param_dtype=param_dtype, lora=Lora(rank=2))
    assert jax.tree.structure(pretrained.load_params(tmp_path, with_adapters)) == jax.tree.structure(made)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_save_then_load_is_exact(tmp_path, random_params, config):
    params = random_params(config)["transformer"]
    pretrained.save(tmp_path / "new" / "folder", config, params, settings={"eos_token_id": 5})
    assert pretrained.load_config(tmp_path / "new" / "folder") == config
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["eos_token_id"] == 5
    assert_same(pretrained.load_params(tmp_path / "new" / "folder", config), params)


def test_bfloat16_is_stored_as_such_and_read_back(tmp_path, random_params):
    config = TransformerConfig(**SIZES, param_dtype="bfloat16")
    params = random_params(config)["transformer"]
    pretrained.save(tmp_path, config, params)
    assert {tensor.dtype for tensor in load_file(tmp_path / SINGLE).values()} == {jnp.dtype("bfloat16")}
    loaded = pretrained.load_params(tmp_path, pretrained.load_config(tmp_path, param_dtype="bfloat16"))
    assert_same(loaded["layers"]["mlp"], params["layers"]["mlp"])
    wide = pretrained.load_params(tmp_path, pretrained.load_config(tmp_path))  # as float32, which holds every bfloat16
    assert wide["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(wide["embedding"], params["embedding"].astype(jnp.float32))


def test_shards_read_like_one_file(saved):
    directory, params = saved
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, directory / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(pretrained.load_params(directory, UNTIED), params)
    (directory / "b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"index\.json names files that are missing; fetch them: b\.safetensors"
    ):
        pretrained.load_params(directory, UNTIED)


@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma3"])
def test_parameters_land_where_the_shardings_say(torch_decoder, case):
    _, directory = torch_decoder(case)
    config = dataclasses.replace(pretrained.load_config(directory))
    tables = [leaf for leaf in pretrained.param_shapes(config) if leaf in ("embedding", "output")]
    rules = [(f"^{table}$", jax.P(None, "fsdp")) for table in tables]  # 61 tokens do not divide
    mesh = runtime.make_mesh(data=2, fsdp=2, tensor=2)
    shapes = traverse_util.unflatten_dict(pretrained.param_shapes(config), sep="/")
    sharding = runtime.shardings(shapes, mesh, [*rules, *runtime.RULES])
    loaded = pretrained.load_params(directory, config, sharding)
    assert_same(loaded, pretrained.load_params(directory, config))
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, loaded, sharding))
    assert loaded["embedding"].addressable_shards[0].data.shape == (61, 12)
    assert loaded["layers"]["attention"]["q"]["kernel"].addressable_shards[0].data.shape == (3, 12, 16)
    del sharding["final_norm"]
    with pytest.raises(ValueError, match="Parameters and shardings differ in: final_norm"):
        pretrained.load_params(directory, config, sharding)


def test_redundant_tensors_are_passed_over(tmp_path, random_params):
    params = random_params(TIED)["transformer"]
    pretrained.save(tmp_path, TIED, params)
    extra = {"lm_head.weight": np.zeros((29, 16)), "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3)}
    rewrite(tmp_path, lambda tensors: tensors | extra)
    assert_same(pretrained.load_params(tmp_path, TIED), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != Q1}, rf"missing: {Q1}"),
        (lambda t: t | {Q1: t[Q1].T.copy()}, rf"misshapen: {Q1} \[16, 24\] instead of \[24, 16\]"),
        (lambda t: t | {Q1: t[Q1].astype(np.int8)}, rf"not floating point: {Q1} \(I8\)"),
        (
            lambda t: t | {"model.layers.1.self_attn.q_proj.bias": t[Q1]},
            r"left over: model\.layers\.1\.self_attn\.q_proj\.bias",
        ),
        (
            lambda t: t | {"model.layers.3.mlp.up_proj.weight": t[Q1]},
            r"left over: model\.layers\.3\.mlp\.up_proj\.weight",
        ),
        (lambda t: {k: v for k, v in t.items() if "layers" not in k}, r"missing: .* and 19 more"),
    ],
)
def test_wrong_tensors_are_named_before_any_is_read(saved, monkeypatch, change, message):
    directory, _ = saved
    rewrite(directory, change)
    monkeypatch.setattr(pretrained, "_read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=message):
        pretrained.load_params(directory, UNTIED)


def test_a_file_cut_short_is_named(saved):
    directory, _ = saved
    content = (directory / SINGLE).read_bytes()
    (directory / SINGLE).write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or damaged"):
        pretrained.load_params(directory, UNTIED)


def test_a_damaged_shard_is_named(tmp_path, random_params):
    pretrained.save(tmp_path, UNTIED, random_params(UNTIED)["transformer"], max_shard_bytes=9000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].write_bytes(b"\xff" * 64 + shards[1].read_bytes()[64:])
    with pytest.raises(ValueError, match=f"{shards[1].name} is cut short or damaged"):
        pretrained.load_params(tmp_path, UNTIED)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"fetch them: {shards[1].name}"):
        pretrained.load_params(tmp_path, UNTIED)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"fetch them: all \(it names none\)"):
        pretrained.load_params(tmp_path, UNTIED)


def test_a_directory_without_weights_is_named(saved):
    directory, _ = saved
    (directory / SINGLE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has neither model\.safetensors nor .*, nor torch's pytorch_model\.bin"
    ):
        pretrained.load_params(directory, UNTIED)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_torch_are_read_where_torch_is(saved, monkeypatch, dtype):
    torch = pytest.importorskip("torch", reason="torch, which reads them, is not installed")
    directory, params = saved
    tensors = {
        name: torch.tensor(value).to(getattr(torch, dtype)) for name, value in load_file(directory / SINGLE).items()
    }
    (directory / SINGLE).unlink()
    names = sorted(tensors)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for shard, members in shards.items():
        torch.save({name: tensors[name] for name in members}, directory / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    assert_same(pretrained.load_params(directory, UNTIED), rounded)
    (directory / "pytorch_model-2.bin").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"pytorch_model-2\.bin is damaged, or holds more than tensors"):
        pretrained.load_params(directory, UNTIED)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"torch is not installed\. Convert .*save_pretrained\('OUT'\)"):
        pretrained.load_params(directory, UNTIED)


def test_a_pickle_that_runs_code_is_refused(saved):
    torch = pytest.importorskip("torch", reason="torch, which reads them, is not installed")
    directory, _ = saved
    (directory / SINGLE).unlink()
    torch.save({"model.norm.weight": Path(directory)}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
        pretrained.load_params(directory, UNTIED)


def test_a_repository_without_safetensors_is_fetched_in_torchs_files(saved, monkeypatch):
    directory, _ = saved
    (directory / SINGLE).unlink()
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda _, allow_patterns, **__: asked.append(allow_patterns) or str(directory),
    )
    with pytest.raises(FileNotFoundError):
        pretrained.load_params("someone/model", UNTIED)
    assert [any(".bin" in pattern for pattern in patterns) for patterns in asked] == [False, True]


def test_the_host_holds_one_tensor_at_a_time(tmp_path, random_params):
    """Python's memory, which arrays on devices are not part of."""
    config = dataclasses.replace(UNTIED, vocab_size=512, width=512, layers=4, hidden=1024)
    params = random_params(config)["transformer"]
    pretrained.save(tmp_path, config, params)
    largest = 4 * 1024 * 512
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 12 * largest
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for placement in (None, jax.tree.map(lambda _: sharding, params)):
        pretrained.load_params(tmp_path, config, placement)  # compiles, and fills caches
        gc.collect()
        tracemalloc.start()
        loaded = pretrained.load_params(tmp_path, config, placement)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert_same(loaded, params)
        # The tensor as it is stored and as it is kept; and the one before, which JAX lets go of at its next call.
        assert largest < peak < 4 * largest


def test_reading_needs_no_torch(saved):
    directory, _ = saved
    code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from meal_jax.hf import pretrained
print(pretrained.load_params({str(directory)!r}, pretrained.load_config({str(directory)!r}))["final_norm"].shape)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "(16,)", out.stderr


# config.json.


def test_config_is_read_in_old_and_new_spelling(saved):
    directory, _ = saved
    assert pretrained.load_config(directory) == UNTIED
    edit_config(directory, rope_parameters=None, rope_theta=77.0, rope_scaling=None)
    assert pretrained.load_config(directory).rope_base == 77.0
    edit_config(directory, rope_parameters={"rope_type": "default", "rope_theta": 88.0})
    assert pretrained.load_config(directory).rope_base == 88.0
    edit_config(directory, head_dim=None, num_key_value_heads=None)
    config = pretrained.load_config(directory, dtype="bfloat16", remat="full")
    assert (config.head_dim, config.kv_heads, config.dtype, config.remat) == (4, 4, "bfloat16", "full")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            dict(architectures=["PhiForCausalLM"]),
            r"architecture PhiForCausalLM \(LlamaForCausalLM, .*GraniteForCausalLM are",
        ),
        (dict(architectures=["Gemma3ForConditionalGeneration"]), "architecture Gemma3ForConditionalGeneration"),
        (dict(architectures=None, model_type="gpt2"), "architecture model_type gpt2"),
        (
            dict(rope_parameters={"rope_type": "yarn", "factor": 2.0}),
            r"rotary scaling of type yarn \(linear and llama3 are",
        ),
        (dict(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}), "rotary scaling of type dynamic"),
        (dict(rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (dict(attention_bias=True, mlp_bias=True), "attention_bias; mlp_bias"),
        (dict(hidden_act="gelu"), "hidden_act gelu"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (
            dict(layer_types=["full_attention", "sliding_attention", "full_attention"]),
            "layer_types in LlamaForCausalLM",
        ),
        (QWEN3 | dict(attention_bias=True), "attention_bias"),
        (
            QWEN3 | dict(layer_types=["full_attention", "linear_attention", "full_attention"]),
            "layer_types linear_attention",
        ),
        (QWEN3 | dict(layer_types=["sliding_attention"] * 3), "layers of sliding attention without a size"),
        (QWEN3 | dict(layer_types=["full_attention"]), "layer_types of 1 layers where num_hidden_layers is 3"),
        (GEMMA3 | dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
        (GEMMA3 | dict(attn_logit_softcapping=50.0), "attn_logit_softcapping in Gemma 3"),
        (GEMMA3 | dict(hidden_activation="gelu"), "hidden_activation gelu"),
        (GEMMA3 | dict(rope_parameters={"rope_theta": 5.0}), "rope_parameters that are not split into full_attention"),
        (
            GEMMA3 | dict(rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
            "rotary scaling of sliding layers",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(saved, entries, message):
    directory, _ = saved
    edit_config(directory, **entries)
    with pytest.raises(ValueError, match=f"config.json asks for what is not implemented: .*{message}"):
        pretrained.load_config(directory)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_absent_entries_are_what_transformers_takes_them_for(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    settings = transformers.AutoConfig.for_model(family)
    architectures = [families.FAMILIES[family].architecture]
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    few = {key: getattr(settings, key) for key in (sizes[:0] if family == "gemma3_text" else sizes)}
    configs = []
    for entries in (few, settings.to_dict()):
        (tmp_path / "config.json").write_text(json.dumps(entries | {"architectures": architectures}))
        configs.append(pretrained.load_config(tmp_path))
    assert configs[0] == configs[1]


def test_old_spellings_of_gemma_3_are_read(tmp_path):
    old = GEMMA3 | dict(
        num_hidden_layers=4,
        rope_theta=7.0,
        rope_local_base_freq=5.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window=16,
        sliding_window_pattern=3,
    )
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = pretrained.load_config(tmp_path)
    assert (config.rope_base, config.local_rope_base, config.rope_scaling.factor) == (7.0, 5.0, 8.0)
    assert (config.window, config.local) == (16, (True, True, False, True))
    assert (config.query_scale, config.head_dim, config.tied, config.logit_softcap) == (1 / 16, 256, True, None)
    assert pretrained.param_shapes(config)["embedding"].shape == (262_208, 2304)


def test_old_spellings_of_windows_are_read(saved):
    """Hub files of before `layer_types`."""
    directory, _ = saved
    edit_config(
        directory, architectures=["Qwen2ForCausalLM"], model_type="qwen2", sliding_window=7, max_window_layers=1
    )
    assert pretrained.load_config(directory).window == 0  # there is a size, but it is not used
    edit_config(directory, use_sliding_window=True)
    config = pretrained.load_config(directory)
    assert (config.window, config.local) == (7, (False, True, True))
    edit_config(directory, max_window_layers=3)
    assert (pretrained.load_config(directory).window, pretrained.load_config(directory).local) == (0, ())
    edit_config(directory, architectures=["MistralForCausalLM"], model_type="mistral")
    assert (pretrained.load_config(directory).window, pretrained.load_config(directory).local) == (7, (True,) * 3)
    edit_config(directory, sliding_window=None)
    assert (pretrained.load_config(directory).window, pretrained.load_config(directory).local) == (0, ())


def test_a_config_that_its_family_cannot_express_is_not_written(tmp_path, random_params):
    config = TransformerConfig(**SIZES, qk_norm=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be written .* as they are: qk_norm"):
        pretrained.save(tmp_path / "out", config, random_params(config)["transformer"])
    assert not (tmp_path / "out").exists()


def test_a_bad_config_is_named(saved):
    directory, _ = saved
    edit_config(directory, num_key_value_heads=3)
    with pytest.raises(
        ValueError, match=r"config\.json does not describe a LlamaForCausalLM: heads=4 is not a multiple"
    ):
        pretrained.load_config(directory)
    edit_config(directory, rope_scaling={"rope_type": "llama3", "factor": 8.0})
    with pytest.raises(ValueError, match="has no entry 'low_freq_factor'"):
        pretrained.load_config(directory)
    edit_config(directory, rope_scaling=None, num_key_value_heads=2)
    with pytest.raises(TypeError, match="no field depth"):
        pretrained.load_config(directory, depth=3)
    path = directory / "config.json"
    entries = json.loads(path.read_text())
    del entries["hidden_size"]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"config\.json has no entry 'hidden_size'"):
        pretrained.load_config(directory)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        pretrained.load_config(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is not a Hugging Face model directory"):
        pretrained.load_config(directory)


# Sources.


def test_a_hub_id_is_fetched_and_a_directory_is_not(saved, monkeypatch):
    directory, _ = saved
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id_, **_: asked.append(id_) or str(directory))
    assert pretrained.load_config(directory) == pretrained.load_config("someone/model") == UNTIED
    assert asked == ["someone/model"]


def test_a_failed_fetch_tells_both_readings(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(FileNotFoundError) as raised:
        pretrained.resolve("some/where")
    message = str(raised.value)
    assert "As a directory: there is none at /" in message
    assert "As a Hugging Face hub id: ConnectionError: no route to host" in message
    assert "Correct the path" in message


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(
        NotADirectoryError, match=r"model\.bin is a file; a Hugging Face directory, a hub id or a \.gguf"
    ):
        pretrained.resolve(tmp_path / "model.bin")


# Writing.


def test_torch_reads_what_is_saved(tmp_path, torch_decoder, case):
    """In, out and in again: the same config.json in what matters, the same logits."""
    import torch
    import transformers

    model, directory = torch_decoder(case)
    config = pretrained.load_config(directory)
    pretrained.save(tmp_path, config, pretrained.load_params(directory, config), settings={"eos_token_id": 5})
    assert pretrained.load_config(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 5
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(model)
    assert not any(report.values()), report
    tokens = torch.tensor(np.random.default_rng(0).integers(0, config.vocab_size, (2, 20)))
    with torch.no_grad():
        np.testing.assert_array_equal(again(tokens).logits, model(tokens).logits)


def test_the_text_part_of_gemma_3_with_vision_is_read(tmp_path, torch_decoder):
    model, _ = torch_decoder("gemma3")
    import torch
    import transformers

    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=model.config.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    both = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    both.model.language_model.load_state_dict(model.model.state_dict())
    both.save_pretrained(tmp_path)
    loaded = pretrained.load_config(tmp_path)
    params = pretrained.load_params(tmp_path, loaded)
    assert loaded.family == "gemma3_text"
    pretrained.save(tmp_path / "text", loaded, params)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", attn_implementation="eager")
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 61, (2, 20)))
    with torch.no_grad():
        np.testing.assert_array_equal(alone(tokens).logits, model(tokens).logits)
        np.testing.assert_allclose(both(tokens).logits, model(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("before", ["one file", "more shards"])
def test_large_weights_are_cut_into_shards(tmp_path, random_params, before):
    params = random_params(UNTIED)["transformer"]
    pretrained.save(
        tmp_path, UNTIED, jax.tree.map(jnp.zeros_like, params), max_shard_bytes=10**9 if before == "one file" else 4000
    )
    pretrained.save(tmp_path, UNTIED, params, max_shard_bytes=9000)
    assert_same(pretrained.load_params(tmp_path, UNTIED), params)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    held = [sum(tensor.nbytes for tensor in load_file(tmp_path / file).values()) for file in files]
    assert len(files) > 2 and max(held) <= 9000
    assert index["metadata"]["total_size"] == sum(held) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    pretrained.save(tmp_path, UNTIED, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE]


def test_bad_parameters_are_named_and_nothing_is_written(tmp_path, random_params):
    params = random_params(UNTIED)["transformer"]
    with pytest.raises(ValueError, match="missing, unknown or misshapen: output"):
        pretrained.save(tmp_path / "out", TIED, params)
    adapted = random_params(TransformerConfig(**SIZES, lora=Lora(rank=2)))["transformer"]
    with pytest.raises(ValueError, match=r"layers/attention/k/lora_a.*Merge the adapters into their kernels first"):
        pretrained.save(tmp_path / "out", TIED, adapted)
    flat = traverse_util.flatten_dict(params)
    flat["final_norm",] = flat["final_norm",][:-1]
    with pytest.raises(ValueError, match="misshapen: final_norm"):
        pretrained.save(tmp_path / "out", UNTIED, traverse_util.unflatten_dict(flat))
    assert not (tmp_path / "out").exists()


def test_files_are_copied_along(tmp_path, random_params):
    (tmp_path / "tokenizer.json").write_text("{}")
    pretrained.save(tmp_path / "out", TIED, random_params(TIED)["transformer"], files=[tmp_path / "tokenizer.json"])
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


# Tokenizers.


def write_tokenizer(directory, **settings):
    model = tokenizers.models.WordLevel({"<unk>": 0, "hello": 1, "<end>": 2, "<pad>": 3}, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "pad"),
    [
        (dict(eos_token="<end>", pad_token="<pad>"), "<pad>"),
        (dict(eos_token="<end>"), "<end>"),
    ],
)
def test_pad_is_the_tokenizers_own_or_its_end(tmp_path, settings, pad):
    write_tokenizer(tmp_path, **settings)
    tokenizer = pretrained.load_tokenizer(tmp_path)
    assert tokenizer.pad_token == pad
    assert tokenizer("hello").input_ids == [1]


def test_a_missing_tokenizer_or_pad_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no tokenizer that can be read"):
        pretrained.load_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has neither a pad nor an end token; name them in tokenizer_config\.json"):
        pretrained.load_tokenizer(tmp_path)


# Begin tokens: one where the family has one, never two. Forms of the published tokenizers, with few words.

WORDS = ["hello", "user", "assistant", "\u2581", " ", "\n", "[INST]", "[/INST]"]
FORMS = {
    # Name: (class, begin token that it adds to a text, special tokens, chat template).
    "llama 2": (
        "LlamaTokenizer",
        "<s>",
        ["<unk>", "<s>", "</s>"],
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    "llama 3": (
        "PreTrainedTokenizerFast",
        "<|begin_of_text|>",
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>' + m['content'] "
        "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}",
    ),
    "qwen": (
        "Qwen2Tokenizer",
        None,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
    ),
    "gemma": (
        "GemmaTokenizer",
        "<bos>",
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + m['content'] + '<end_of_turn>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>assistant' }}{% endif %}",
    ),
    "gpt2": ("GPT2Tokenizer", None, ["<|endoftext|>"], None),
}


@pytest.fixture(params=FORMS)
def form(request, tmp_path):
    """(directory, class, begin token, chat template) of each form in turn."""
    kind, begin, special, template = FORMS[request.param]
    pieces = dict.fromkeys([*special, *WORDS, *"helousrain"])
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
    pieces |= dict.fromkeys(a + b for a, b in merges)
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        unk_token=special[0] if special[0] == "<unk>" else None,
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(special)
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ends = {"llama 2": "</s>", "llama 3": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<eos>", "gpt2": "<|endoftext|>"}
    settings = {
        "tokenizer_class": kind,
        "bos_token": begin,
        "eos_token": ends[request.param],
        "chat_template": template,
    }
    if kind in ("LlamaTokenizer", "GemmaTokenizer"):
        settings["add_bos_token"] = True
    settings = {key: value for key, value in settings.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path, kind, begin, template


def test_a_text_begins_once(form):
    directory, kind, begin, _ = form
    tokenizer = pretrained.load_tokenizer(directory)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello").input_ids)
    assert "hello" in "".join(tokens)
    assert type(tokenizer).__name__ in (kind, "TokenizersBackend")
    assert tokens.count(begin) == (begin is not None)
    assert begin is None or tokens[0] == begin
    assert not set(tokens) & set(tokenizer.all_special_tokens) - {begin}


def test_a_conversation_begins_once(form):
    """The template writes the begin token, so the tokenizer must not; nothing that follows begins again."""
    directory, _, begin, template = form
    if template is None:
        return
    tokenizer = pretrained.load_tokenizer(directory)
    chat = chats.make(tokenizer, system=None)
    ids = chats.prompt_ids(chat, (("user", "hello"),))
    assert ids == tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], return_dict=False)
    prompt = tokenizer.convert_ids_to_tokens(ids)
    assert prompt.count(begin) == (begin is not None)
    assert begin is None or prompt[0] == begin
    rest = tokenizer.convert_ids_to_tokens(chats.tail_ids(chat) + chats.response_ids(chat, "hello"))
    assert begin not in rest
    assert tokenizer.added_tokens_decoder[chat.end].special and rest[-1] == tokenizer.convert_ids_to_tokens(chat.end)


@pytest.mark.parametrize(
    ("name", "ids"), [("llama2", [1, 15043, 445]), ("qwen2.5", [9707, 419]), ("gpt2", [15496, 428])]
)
def test_published_tokenizers_begin_a_text_as_their_models_expect(name, ids):
    if not (TOKENIZERS / name).is_dir():
        pytest.skip("the published tokenizers are not at ../shared/data/tokenizers")
    tokenizer = pretrained.load_tokenizer(TOKENIZERS / name)
    assert tokenizer("Hello this").input_ids == ids
    assert tokenizer.pad_token is not None


# Sentencepiece's own file.


def message(*fields):
    """A protocol buffer of (number, value) pairs with short values."""
    out = b""
    for number, value in fields:
        key = number << 3
        if isinstance(value, int):
            out += varint(key) + varint(value % 2**64)
        elif isinstance(value, float):
            out += varint(key | 5) + struct.pack("<f", value)
        else:
            out += varint(key | 2) + varint(len(value)) + value
    return out


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def pieces_file(model_type=2, *normalizer):
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(piece, 1) for piece in ("\u2581t", "he", "\u2581the", "\u2581", "t", "h", "e")]
    listed = [(1, message((1, p.encode()), (2, -float(i)), (3, kind))) for i, (p, kind) in enumerate(pieces)]
    return message(
        *listed,
        (2, message((3, model_type), (40, 0), (41, 1), (42, 2), (43, -1))),
        (3, message((1, b"bpe"), *normalizer)),
    )


def test_a_sentencepiece_file_alone_is_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(pieces_file())
    tokenizer = pretrained.load_tokenizer(tmp_path)
    assert tokenizer.tokenize("the é") == ["\u2581the", "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer("the").input_ids == [1, 3 + 256 + 2]
    assert tokenizer.decode(tokenizer("the é").input_ids, skip_special_tokens=True) == "the é"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    settings = {"pad_token": {"content": "<unk>"}, "chat_template": "{{ bos_token }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = pretrained.load_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("<unk>", "{{ bos_token }}")


def test_bad_sentencepiece_files_are_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    for content in (pieces_file()[:-3], b"\xff\xff", b"words"):
        path.write_bytes(content)
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.model is not a sentencepiece model, or is cut short"):
            pretrained.load_tokenizer(tmp_path)
    path.write_bytes(pieces_file(model_type=1))
    with pytest.raises(FileNotFoundError, match="other than BPE"):
        pretrained.load_tokenizer(tmp_path)


def test_packages_that_a_sentencepiece_file_needs_are_named(tmp_path, monkeypatch):
    def fail(*_, **__):  # what transformers says without sentencepiece
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    (tmp_path / "spm.model").write_bytes(pieces_file())
    (tmp_path / "refuses.py").write_text("raise TypeError('gencode 7.36.1 runtime 6.33.6')")
    monkeypatch.syspath_prepend(tmp_path)
    absent, there = ({"sentencepiece": "no_such_module"}, {"sentencepiece": "json", "protobuf": "json.decoder"})
    for packages, reader, message in (
        (absent | {"protobuf": "no_such.module"}, "json", "spm.model .*pip install sentencepiece protobuf"),
        (there, "refuses", r"spm.model by refuses, .*runtime 6.33.6.*: pip install --upgrade sentencepiece protobuf"),
        (there, "json", "tiktoken"),
    ):
        monkeypatch.setattr(pretrained.sentencepiece, "PACKAGES", packages)
        monkeypatch.setattr(pretrained.sentencepiece, "READER", reader)
        with pytest.raises(FileNotFoundError, match=message):
            pretrained.load_tokenizer(tmp_path)


def test_a_template_in_a_file_beside_a_sentencepiece_file_comes_before_the_entry(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(pieces_file())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert pretrained.load_tokenizer(tmp_path).chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} é", encoding="utf-8")
    assert pretrained.load_tokenizer(tmp_path).chat_template == "{{ messages }} é"


def test_added_tokens_beside_a_sentencepiece_file_have_their_ids(tmp_path):
    """As ChatML fine-tunes of Llama have them; a space or none before the text as the file or the settings say."""
    (tmp_path / "tokenizer.model").write_bytes(pieces_file())
    size = 3 + 256 + 7

    def write_all(added, **settings):
        for name, content in (("added_tokens", added), ("tokenizer_config", settings), ("special_tokens_map", roles)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return pretrained.load_tokenizer(tmp_path)

    roles = {"eos_token": {"content": "<|im_end|>"}, "additional_special_tokens": ["<|im_start|>"]}
    added = {"<|im_end|>": size, "<|im_start|>": size + 1, "<tool>": size + 2}
    for tokenizer in (
        write_all(added),
        write_all({}, added_tokens_decoder={i: {"content": t, "special": "im" in t} for t, i in added.items()}),
    ):
        ids = tokenizer("<|im_start|>the<tool><|im_end|>", add_special_tokens=False).input_ids
        assert (ids[0], *ids[-2:]) == (size + 1, size + 2, size)
        assert (tokenizer.eos_token_id, len(tokenizer)) == (size, size + 3)
        special = {i: token.special for i, token in tokenizer.added_tokens_decoder.items()}
        assert (special[size], special[size + 1], special[size + 2]) == (True, True, False)
    assert write_all(added, eos_token="</s>").eos_token_id == 2
    for wrong in ({"<|im_end|>": size + 1}, {"<|im_end|>": 5}, {"the": 5}):
        with pytest.raises(FileNotFoundError, match="adds the token .* as id .* comes out as"):
            write_all(wrong)


def test_settings_beside_a_sentencepiece_file_are_followed(tmp_path):
    """`legacy` puts a space before each part between special tokens, as transformers 5.24 does; then begin and end tokens."""
    (tmp_path / "tokenizer.model").write_bytes(pieces_file())

    def tokens(text, **settings):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = pretrained.load_tokenizer(tmp_path)
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    the, text = "\u2581the", "<s>the</s>the"
    assert tokens(text, legacy=False) == ["<s>", "<s>", "t", "he", "</s>", "t", "he"]
    assert tokens(text, legacy=True) == ["<s>", "<s>", the, "</s>", the]
    # By default it is on where no class is named, and off in Llama's.
    assert tokens(text) == tokens(text, tokenizer_class="TokenizersBackend") == tokens(text, legacy=True)
    assert tokens(text, tokenizer_class="LlamaTokenizer") == tokens(text, legacy=False) == tokens(text, legacy=None)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')  # which transformers reads without Llama's class
    assert tokens(text, tokenizer_class="LlamaTokenizer") == tokens(text, legacy=True)
    assert tokens(text, tokenizer_class="LlamaTokenizer", legacy=False) == tokens(text, legacy=False)
    assert tokens("the", legacy=True) == tokens("the", add_bos_token=True) == ["<s>", the]
    assert tokens("the", add_bos_token=False) == [the]
    assert tokens("the", add_eos_token=True) == ["<s>", the, "</s>"]
    assert tokens("the", add_eos_token=True, add_bos_token=False, eos_token="<unk>") == [the, "<unk>"]
    assert tokens("the", add_eos_token=True, bos_token="<new>") == ["<s>", the, "</s>"]  # the file does not have it


def test_a_sentencepiece_files_normaliser_is_followed(tmp_path):
    def tokens(*normalizer, **settings):
        (tmp_path / "tokenizer.model").write_bytes(pieces_file(2, *normalizer))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return pretrained.load_tokenizer(tmp_path).tokenize(" the  the")

    the, plain = "\u2581the", ["t", "he"]
    assert tokens() == tokens((3, 1), (4, 0)) == ["\u2581", the, "\u2581", the]  # a space of the text and one before it
    assert tokens((3, 0)) == [the, "\u2581", the]
    assert tokens((3, 1), (4, 1)) == [the, the]
    assert tokens((3, 0), (4, 1)) == [*plain, the]
    assert tokens((3, 1), (4, 1), add_prefix_space=False) == [*plain, the]
    with pytest.raises(FileNotFoundError, match="writes spaces after words, or as they are"):
        tokens((5, 0))
