"""Hugging Face directories in and out: the policy's own tree, exact round trips, and what is said of bad ones."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from meal_jax.models import hf
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import Transformer, TransformerConfig

SIZES = dict(
    vocab_size=29, width=16, layers=3, heads=4, kv_heads=2, head_dim=6, hidden=20, rope_base=500.0, norm_eps=1e-3
)
TIED = TransformerConfig(**SIZES)
UNTIED = TransformerConfig(**SIZES, tied=False)
Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def saved(tmp_path, random_params):
    """(directory, parameters) of an untied model that `save` wrote."""
    params = random_params(UNTIED)["transformer"]
    hf.save(tmp_path, UNTIED, params)
    return tmp_path, params


def rewrite(directory, change):
    """Applies a function to the dict of the directory's tensors and writes what it returns."""
    save_file(change(load_file(directory / hf.SINGLE)), directory / hf.SINGLE)


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
    hf.save(tmp_path, config, random_params(config)["transformer"])
    args = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 2), jnp.int32)
    made = jax.eval_shape(Policy(config, Conditioning("prefix")).init, jax.random.key(0), *args)["params"][
        "transformer"
    ]
    loaded = jax.eval_shape(lambda: hf.load_params(tmp_path, hf.load_config(tmp_path, param_dtype=param_dtype)))
    assert loaded == made  # structure, shapes and types
    with_adapters = hf.load_config(tmp_path, param_dtype=param_dtype, lora=Lora(rank=2))
    assert jax.tree.structure(hf.load_params(tmp_path, with_adapters)) == jax.tree.structure(made)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_save_then_load_is_exact(tmp_path, random_params, config):
    params = random_params(config)["transformer"]
    hf.save(tmp_path / "new" / "folder", config, params, settings={"eos_token_id": 5})
    assert hf.load_config(tmp_path / "new" / "folder") == config
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["eos_token_id"] == 5
    assert_same(hf.load_params(tmp_path / "new" / "folder", config), params)


def test_bfloat16_is_stored_as_such_and_read_back(tmp_path, random_params):
    config = TransformerConfig(**SIZES, param_dtype="bfloat16")
    params = random_params(config)["transformer"]
    hf.save(tmp_path, config, params)
    assert {tensor.dtype for tensor in load_file(tmp_path / hf.SINGLE).values()} == {jnp.dtype("bfloat16")}
    loaded = hf.load_params(tmp_path, hf.load_config(tmp_path, param_dtype="bfloat16"))
    assert_same(loaded["layers"]["mlp"], params["layers"]["mlp"])
    wide = hf.load_params(tmp_path, hf.load_config(tmp_path))  # as float32, which holds every bfloat16
    assert wide["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(wide["embedding"], params["embedding"].astype(jnp.float32))


def test_shards_read_like_one_file(saved):
    directory, params = saved
    tensors = load_file(directory / hf.SINGLE)
    (directory / hf.SINGLE).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, directory / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (directory / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(hf.load_params(directory, UNTIED), params)
    (directory / "b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"index\.json names files that are missing; fetch them: b\.safetensors"
    ):
        hf.load_params(directory, UNTIED)


def test_parameters_land_where_the_shardings_say(saved):
    directory, params = saved
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    spec = lambda leaf: jax.P(*(None,) * (leaf.ndim - 1), "fsdp" if leaf.shape[-1] % 2 == 0 else None)  # noqa: E731
    sharding = jax.tree.map(lambda leaf: jax.NamedSharding(mesh, spec(leaf)), params)
    loaded = hf.load_params(directory, UNTIED, sharding)
    assert_same(loaded, params)
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, loaded, sharding))
    assert loaded["embedding"].addressable_shards[0].data.shape == (29, 8)
    del sharding["final_norm"]
    with pytest.raises(ValueError, match="Parameters and shardings differ in: final_norm"):
        hf.load_params(directory, UNTIED, sharding)


def test_redundant_tensors_are_passed_over(tmp_path, random_params):
    params = random_params(TIED)["transformer"]
    hf.save(tmp_path, TIED, params)
    extra = {"lm_head.weight": np.zeros((29, 16)), "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(3)}
    rewrite(tmp_path, lambda tensors: tensors | extra)
    assert_same(hf.load_params(tmp_path, TIED), params)


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
    monkeypatch.setattr(hf, "_read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=message):
        hf.load_params(directory, UNTIED)


def test_a_file_cut_short_is_named(saved):
    directory, _ = saved
    content = (directory / hf.SINGLE).read_bytes()
    (directory / hf.SINGLE).write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or damaged"):
        hf.load_params(directory, UNTIED)


def test_a_directory_without_safetensors_is_named(saved):
    directory, _ = saved
    (directory / hf.SINGLE).rename(directory / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"It has pytorch_model\.bin: save the model again with safetensors"):
        hf.load_params(directory, UNTIED)


def test_reading_needs_no_torch(saved):
    directory, _ = saved
    code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from meal_jax.models import hf
print(hf.load_params({str(directory)!r}, hf.load_config({str(directory)!r}))["final_norm"].shape)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "(16,)", out.stderr


# config.json.


def test_config_is_read_in_old_and_new_spelling(saved):
    directory, _ = saved
    assert hf.load_config(directory) == UNTIED
    edit_config(directory, rope_parameters=None, rope_theta=77.0, rope_scaling=None)
    assert hf.load_config(directory).rope_base == 77.0
    edit_config(directory, rope_parameters={"rope_type": "default", "rope_theta": 88.0})
    assert hf.load_config(directory).rope_base == 88.0
    edit_config(directory, head_dim=None, num_key_value_heads=None)
    config = hf.load_config(directory, dtype="bfloat16", remat="full")
    assert (config.head_dim, config.kv_heads, config.dtype, config.remat) == (4, 4, "bfloat16", "full")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(architectures=["MistralForCausalLM"]), "architecture MistralForCausalLM"),
        (dict(architectures=None, model_type="gpt2"), "architecture model_type gpt2"),
        (dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}), "rotary scaling of type llama3"),
        (dict(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}), "rotary scaling of type linear"),
        (dict(rope_parameters={"rope_theta": 1.0, "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (dict(attention_bias=True, mlp_bias=True), "attention_bias; mlp_bias"),
        (dict(hidden_act="gelu"), "hidden_act gelu"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(saved, entries, message):
    directory, _ = saved
    edit_config(directory, **entries)
    with pytest.raises(ValueError, match=f"config.json asks for what is not implemented: .*{message}"):
        hf.load_config(directory)


def test_a_bad_config_is_named(saved):
    directory, _ = saved
    with pytest.raises(TypeError, match="no field depth"):
        hf.load_config(directory, depth=3)
    path = directory / "config.json"
    entries = json.loads(path.read_text())
    del entries["hidden_size"]
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"config\.json has no entry 'hidden_size'"):
        hf.load_config(directory)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        hf.load_config(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is not a Hugging Face model directory"):
        hf.load_config(directory)


# Sources.


def test_a_hub_id_is_fetched_and_a_directory_is_not(saved, monkeypatch):
    directory, _ = saved
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda id_, **_: asked.append(id_) or str(directory))
    assert hf.load_config(directory) == hf.load_config("someone/model") == UNTIED
    assert asked == ["someone/model"]


def test_a_failed_fetch_tells_both_readings(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(FileNotFoundError) as raised:
        hf.resolve("some/where")
    message = str(raised.value)
    assert "As a directory: there is none at /" in message
    assert "As a Hugging Face hub id: ConnectionError: no route to host" in message
    assert "Correct the path" in message


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(NotADirectoryError, match=r"is a file.*converted by python -m meal_jax\.models\.gguf"):
        hf.resolve(tmp_path / "model.gguf")


# Writing.


@pytest.mark.parametrize("tied", [True, False])
def test_torch_reads_what_is_saved(tmp_path, random_params, tied):
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    config = TransformerConfig(**SIZES, tied=tied)
    params = random_params(config)["transformer"]
    hf.save(tmp_path, config, params)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = np.random.default_rng(0).integers(0, 29, (2, 12))
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    causal = jnp.tril(jnp.ones((12, 12), bool))[None, None]

    @jax.jit
    def logits(params):
        run = lambda m: m.unembed(m(m.embed(tokens)[:, None], jnp.arange(12)[None, None], causal)[0][:, 0])  # noqa: E731
        return Transformer(config).apply({"params": params}, method=run)

    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits(params), expected, atol=1e-4, rtol=0)


def test_bad_parameters_are_named_and_nothing_is_written(tmp_path, random_params):
    params = random_params(UNTIED)["transformer"]
    with pytest.raises(ValueError, match="missing, unknown or misshapen: output"):
        hf.save(tmp_path / "out", TIED, params)
    adapted = random_params(TransformerConfig(**SIZES, lora=Lora(rank=2)))["transformer"]
    with pytest.raises(ValueError, match=r"layers/attention/k/lora_a.*Merge the adapters into their kernels first"):
        hf.save(tmp_path / "out", TIED, adapted)
    flat = traverse_util.flatten_dict(params)
    flat["final_norm",] = flat["final_norm",][:-1]
    with pytest.raises(ValueError, match="misshapen: final_norm"):
        hf.save(tmp_path / "out", UNTIED, traverse_util.unflatten_dict(flat))
    assert not (tmp_path / "out").exists()


def test_files_are_copied_along(tmp_path, random_params):
    (tmp_path / "tokenizer.json").write_text("{}")
    hf.save(tmp_path / "out", TIED, random_params(TIED)["transformer"], files=[tmp_path / "tokenizer.json"])
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
    tokenizer = hf.load_tokenizer(tmp_path)
    assert tokenizer.pad_token == pad
    assert tokenizer("hello").input_ids == [1]


def test_a_missing_tokenizer_or_pad_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no tokenizer that can be read"):
        hf.load_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"has neither a pad nor an end token; name them in tokenizer_config\.json"):
        hf.load_tokenizer(tmp_path)
