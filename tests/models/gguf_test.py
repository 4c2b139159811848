"""A tiny GGUF file, written here as llama.cpp lays it out, turned into a Hugging Face directory."""

import json
import sys

import jax
import numpy as np
import pytest

from meal_jax.models import gguf as converter
from meal_jax.models import hf
from meal_jax.models.transformer import TransformerConfig

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

BYTES = sorted(converter.pre_tokenizers.ByteLevel.alphabet())  # one character for each byte; "Ġ" is the space
SPECIAL, WORDS = ["<|end|>", "<|start|>", "<|file|>"], ["he", "ll", "hell", "hello", "Ġhello", "12"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2"]
TOKENS = [*SPECIAL, *BYTES, *WORDS, "<tool>"]
TYPES = [3] * len(SPECIAL) + [1] * (len(BYTES) + len(WORDS)) + [4]
TEMPLATE = "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
CONFIG = TransformerConfig(
    vocab_size=len(TOKENS),
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden=64,
    rope_base=300.0,
    norm_eps=1e-5,
    tied=False,
)


def interleave(rows, heads):
    """How llama.cpp orders a query or key matrix: feature i of a head is followed by feature i + C/2."""
    return np.concatenate(
        [head[[i // 2 + i % 2 * (len(head) // 2) for i in range(len(head))]] for head in np.split(rows, heads)]
    )


def write(path, params, config=CONFIG, *, quantized=(), tensors=(), left_out=(), **metadata):
    """Writes a GGUF file of the parameters; `metadata` are entries to change ("__" for "."), None to leave out."""
    writer = gguf.GGUFWriter(path, metadata.pop("general__architecture", "llama"))
    entries = {
        "llama.block_count": config.layers,
        "llama.context_length": 512,
        "llama.embedding_length": config.width,
        "llama.feed_forward_length": config.hidden,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    entries |= {key.replace("__", "."): value for key, value in metadata.items()}
    add = {
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
        bool: writer.add_bool,
    }
    for key, value in entries.items():
        if value is not None:
            add[type(value)](key, value)

    def put(name, value):
        if name in quantized:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        elif name not in left_out:
            writer.add_tensor(name, np.ascontiguousarray(value))

    params = jax.tree.map(np.asarray, params)
    put("token_embd.weight", params["embedding"])
    put("output_norm.weight", params["final_norm"])
    if not config.tied:
        put("output.weight", params["output"])
    for i in range(config.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        attention, mlp = layer["attention"], layer["mlp"]
        put(f"blk.{i}.attn_norm.weight", layer["attention_norm"])
        put(f"blk.{i}.attn_q.weight", interleave(attention["q"]["kernel"].T, config.heads))
        put(f"blk.{i}.attn_k.weight", interleave(attention["k"]["kernel"].T, config.kv_heads))
        put(f"blk.{i}.attn_v.weight", attention["v"]["kernel"].T)
        put(f"blk.{i}.attn_output.weight", attention["o"]["kernel"].T)
        put(f"blk.{i}.ffn_norm.weight", layer["mlp_norm"])
        put(f"blk.{i}.ffn_gate.weight", mlp["gate"]["kernel"].T)
        put(f"blk.{i}.ffn_up.weight", mlp["up"]["kernel"].T)
        put(f"blk.{i}.ffn_down.weight", mlp["down"]["kernel"].T)
    for name, value in tensors:
        put(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def params(random_params):
    return random_params(CONFIG)["transformer"]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_interleaving_is_what_llama_cpp_says():
    rows = np.arange(12)[:, None]
    expected = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(interleave(rows, 2)[:, 0], expected)
    np.testing.assert_array_equal(converter.unpermute(interleave(rows, 2), 2), rows)


def test_round_trip_is_exact(tmp_path, params):
    converter.convert(write(tmp_path / "model.gguf", params), tmp_path / "out")
    assert hf.load_config(tmp_path / "out") == CONFIG
    assert_same(hf.load_params(tmp_path / "out", CONFIG), params)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (entries["bos_token_id"], entries["eos_token_id"], entries["max_position_embeddings"]) == (1, 0, 512)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 0}


def test_a_file_without_an_output_matrix_is_tied(tmp_path, params):
    tied = {name: leaf for name, leaf in params.items() if name != "output"}
    source = write(tmp_path / "model.gguf", params, left_out=["output.weight"])
    converter.convert(source, tmp_path / "out")
    config = hf.load_config(tmp_path / "out")
    assert config.tied
    assert_same(hf.load_params(tmp_path / "out", config), tied)


def test_quantized_weights_are_expanded(tmp_path, params):
    source = write(tmp_path / "model.gguf", params, quantized=["blk.1.attn_q.weight", "blk.0.ffn_up.weight"])
    converter.convert(source, tmp_path / "out")
    loaded = hf.load_params(tmp_path / "out", CONFIG)
    for group, name in (("attention", "q"), ("mlp", "up")):
        got, exact = (tree["layers"][group][name]["kernel"] for tree in (loaded, params))
        error = float(abs(got - exact).max())
        assert 0 < error < float(abs(exact).max()) / 200
    assert_same(loaded["layers"]["mlp"]["down"], params["layers"]["mlp"]["down"])


def test_bfloat16_halves_the_file(tmp_path, params):
    source = write(tmp_path / "model.gguf", params)
    converter.main([f"--source={source}", f"--out={tmp_path / 'wide'}"])
    converter.main([f"--source={source}", f"--out={tmp_path / 'half'}", "--dtype=bfloat16"])
    wide, half = ((tmp_path / name / hf.SINGLE).stat().st_size for name in ("wide", "half"))
    assert half < 0.6 * wide
    loaded = hf.load_params(tmp_path / "half", CONFIG)
    np.testing.assert_array_equal(loaded["embedding"], params["embedding"].astype("bfloat16").astype("float32"))


def test_tokenizer(tmp_path, params):
    converter.convert(write(tmp_path / "model.gguf", params), tmp_path / "out")
    tokenizer = hf.load_tokenizer(tmp_path / "out")
    pieces = lambda text: tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)  # noqa: E731
    assert pieces("hello hello") == ["hello", "Ġhello"]
    assert pieces("12") == ["1", "2"]  # digits stand alone, though there is a merge that would join them
    assert pieces("hello<|end|>hello<tool>") == ["hello", "<|end|>", "hello", "<tool>"]
    assert pieces("hello<|file|>") == ["hello", "<|file|>"]  # one that is neither begin nor end
    text = "  naïve café, ½ x²\n\n日本 12.5% 🙂"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (
        tokenizer.decode(tokenizer("hello<|end|><|file|><tool>").input_ids, skip_special_tokens=True) == "hello<tool>"
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0, 0)
    assert tokenizer.model_max_length == 512
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert chat == "<|start|>user hello<|end|>"


def test_begin_and_end_tokens_are_added_where_the_file_says_so(tmp_path, params):
    ends = dict(tokenizer__ggml__add_bos_token=True, tokenizer__ggml__add_eos_token=True)
    converter.convert(write(tmp_path / "model.gguf", params, **ends), tmp_path / "out")
    tokenizer = hf.load_tokenizer(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello").input_ids) == ["<|start|>", "hello", "<|end|>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(general__architecture="gemma3"), "architecture 'gemma3' is not implemented"),
        (dict(tokenizer__ggml__model="llama"), "tokenizer model 'llama' is not implemented"),
        (dict(tokenizer__ggml__pre="qwen2"), r"pre-tokenizer 'qwen2' is not implemented \(smollm is\)"),
        (dict(llama__expert_count=8), r"experts \(llama\.expert_count\)"),
        (dict(llama__rope__scaling__type="yarn"), r"rotary scaling \(yarn\)"),
        (dict(tensors=[("rope_freqs.weight", np.ones(4, np.float32))]), "rotary scaling"),
        (dict(llama__rope__dimension_count=4), "heads that are rotated in part"),
        (dict(llama__block_count=None), r"no entry llama\.block_count"),
        (dict(left_out=["blk.1.ffn_up.weight"]), r"missing \['blk\.1\.ffn_up\.weight'\], left over none"),
        (dict(tensors=[("blk.0.attn_q.bias", np.ones(32, np.float32))]), r"left over \['blk\.0\.attn_q\.bias'\]"),
        (dict(tokenizer__ggml__tokens=[*TOKENS[:-1], "he"]), "vocabulary holds a token twice"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, params, change, message):
    source = write(tmp_path / "model.gguf", params, **change)
    with pytest.raises(ValueError, match=message):
        converter.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_files_are_named(tmp_path, params):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        converter.convert(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "text.gguf").write_text("this is no GGUF file")
    with pytest.raises(ValueError, match="is not a GGUF file, or is cut short"):
        converter.convert(tmp_path / "text.gguf", tmp_path / "out")
    whole = write(tmp_path / "model.gguf", params).read_bytes()
    for length in (40, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a GGUF file, or is cut short"):
            converter.convert(tmp_path / "cut.gguf", tmp_path / "out")
    with pytest.raises(SystemExit, match="error: There is no file"):
        converter.main([f"--source={tmp_path / 'none.gguf'}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_without_the_gguf_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "meal_jax\[gguf\]"'):
        converter.convert(tmp_path / "model.gguf", tmp_path / "out")
