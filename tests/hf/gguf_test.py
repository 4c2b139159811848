"""Tiny GGUF files, written here as llama.cpp lays them out, as sources and turned into Hugging Face directories."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from meal_jax.hf import convert_gguf as converter
from meal_jax.hf import gguf_tokenizer, pretrained
from meal_jax.hf.gguf import unpermute
from meal_jax.hf.storage import SINGLE
from meal_jax.models.rotary import RopeScaling, rope_divisors
from meal_jax.models.transformer import TransformerConfig
from meal_jax.parity import comparison

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

BYTES = sorted(gguf_tokenizer.pre_tokenizers.ByteLevel.alphabet())  # one character for each byte; "Ġ" is the space
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
GEMMA3 = dict(
    family="gemma3_text",
    layers=7,
    activation="gelu_tanh",
    norm_plus_one=True,
    post_norms=True,
    scaled_embedding=True,
    qk_norm=True,
    query_scale=8.0**-0.5,
    window=5,
    local=(True,) * 5 + (False, True),
    local_rope_base=10_000.0,
    tied=True,
)
# Architecture in GGUF's name, and what its decoder has beside CONFIG.
LAYOUTS = {
    "llama": ("llama", {}),
    "llama 3.1": ("llama", dict(head_dim=24, rope_scaling=RopeScaling("llama3", 8.0), rope_base=500_000.0)),
    "qwen2": ("qwen2", dict(family="qwen2", qkv_bias=True)),
    "qwen3": ("qwen3", dict(family="qwen3", qk_norm=True, tied=True)),
    "gemma3": ("gemma3", GEMMA3),
    "gemma3, linear": ("gemma3", GEMMA3 | dict(rope_scaling=RopeScaling("linear", 8.0))),
}
LINEAR = (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output"))
NORMS = {
    "attention_norm": "attn_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
}


def interleave(rows, heads):
    """How llama.cpp orders a query or key matrix: feature i of a head is followed by feature i + C/2."""
    return np.concatenate(
        [head[[i // 2 + i % 2 * (len(head) // 2) for i in range(len(head))]] for head in np.split(rows, heads)]
    )


def layers_of(config, params, architecture):
    """(GGUF name, value) of every tensor of the layers."""
    plus = 1.0 if architecture == "gemma3" else 0.0
    for i in range(config.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
        for actual, reference in LINEAR:
            heads = {"q": config.heads, "k": config.kv_heads}.get(actual) if architecture == "llama" else None
            leaf = layer["attention"][actual]
            yield f"blk.{i}.{reference}.weight", interleave(leaf["kernel"].T, heads) if heads else leaf["kernel"].T
            if "bias" in leaf:
                yield f"blk.{i}.{reference}.bias", leaf["bias"]
        for actual in ("gate", "up", "down"):
            yield f"blk.{i}.ffn_{actual}.weight", layer["mlp"][actual]["kernel"].T
        for actual, reference in NORMS.items():
            if actual in layer:
                yield f"blk.{i}.{reference}.weight", layer[actual] + np.float32(plus)
        for actual in ("q_norm", "k_norm"):
            if actual in layer["attention"]:
                yield f"blk.{i}.attn_{actual}.weight", layer["attention"][actual] + np.float32(plus)


def metadata_of(config, architecture):
    """What llama.cpp says of a decoder."""
    entries = {
        "block_count": config.layers,
        "context_length": 512,
        "embedding_length": config.width,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.rope_base,
    }
    if architecture == "llama":
        entries["rope.dimension_count"] = config.head_dim
    if config.window:
        entries["attention.sliding_window"] = config.window
    if config.rope_scaling is not None and config.rope_scaling.kind == "linear":
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling.factor}
    return {f"{architecture}.{key}": value for key, value in entries.items()}


def write(path, params, config=CONFIG, architecture="llama", *, quantized=(), tensors=(), left_out=(), **metadata):
    """Writes a GGUF file of the parameters; `metadata` are entries to change ("__" for "."), None to leave out."""
    writer = gguf.GGUFWriter(path, metadata.pop("general__architecture", architecture))
    entries = metadata_of(config, architecture) | {
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
    put("output_norm.weight", params["final_norm"] + np.float32(architecture == "gemma3"))
    if not config.tied:
        put("output.weight", params["output"])
    for name, value in layers_of(config, params, architecture):
        put(name, value)
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        frequency = config.rope_base ** (-np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
        put("rope_freqs.weight", rope_divisors(frequency, config.rope_scaling))
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
    np.testing.assert_array_equal(unpermute(interleave(rows, 2), 2), rows)


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path, random_params):
    """(architecture, config, parameters, file) of each layout in turn."""
    architecture, entries = LAYOUTS[request.param]
    config = dataclasses.replace(CONFIG, **entries)
    params = random_params(config)["transformer"]
    return architecture, config, params, write(tmp_path / "model.gguf", params, config, architecture)


def test_round_trip(tmp_path, layout):
    architecture, config, params, source = layout
    converter.convert(source, tmp_path / "out")
    assert pretrained.load_config(tmp_path / "out") == config
    near = 1e-6 if architecture == "gemma3" else 0.0  # w + 1 is rounded

    def close(a, b):
        return np.testing.assert_allclose(a, b, rtol=0, atol=near)

    jax.tree.map(close, pretrained.load_params(tmp_path / "out", config), params)
    entries = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (entries["bos_token_id"], entries["eos_token_id"], entries["max_position_embeddings"]) == (1, 0, 512)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 0}
    # The file itself is a source too, and the same one.
    assert pretrained.load_config(source, dtype="bfloat16") == dataclasses.replace(config, dtype="bfloat16")
    assert_same(pretrained.load_params(source, config), pretrained.load_params(tmp_path / "out", config))
    assert (
        pretrained.load_tokenizer(source)("hello").input_ids
        == pretrained.load_tokenizer(tmp_path / "out")("hello").input_ids
    )


def test_transformers_reads_the_same_from_the_file(tmp_path, layout, monkeypatch):
    """Its own reading of GGUF, by torch, against ours: the weights, and the settings that it takes from the file."""
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    # It asks for a package that nothing here calls.
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True, raising=False)
    architecture, _, _, source = layout
    if architecture == "qwen3":
        pytest.skip("transformers does not read the head width of this architecture")
    converter.convert(source, tmp_path / "out")
    actual = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=source.name, dtype=torch.float32)
    assert type(actual) is type(reference)
    actual_state, reference_state = actual.state_dict(), reference.state_dict()
    assert actual_state.keys() == reference_state.keys()
    for name, value in reference_state.items():
        np.testing.assert_allclose(actual_state[name], value, rtol=0, atol=1e-6, err_msg=name)
    for name in (
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "sliding_window",
        "layer_types",
    ):
        if architecture == "gemma3" or name not in ("head_dim", "sliding_window", "layer_types"):
            assert getattr(actual.config, name) == pytest.approx(getattr(reference.config, name)), name


def test_the_parity_command_takes_the_file(tmp_path, params, monkeypatch):
    pytest.importorskip("torch", reason="torch, the reference, is not installed")
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True, raising=False)
    result = comparison.compare(str(write(tmp_path / "model.gguf", params)), [[1, 5, 7], [2, 3]], tokens=5)
    assert result.expected == result.greedy and 0 < result.difference < 1e-4


def test_a_source_that_changes_is_read_again(tmp_path, params):
    source = write(tmp_path / "model.gguf", params)
    assert pretrained.resolve(source) == pretrained.resolve(str(source))
    assert pretrained.load_config(source).tied is False
    write(source, params, left_out=["output.weight"])
    assert pretrained.load_config(source).tied is True


def test_a_file_without_an_output_matrix_is_tied(tmp_path, params):
    tied = {name: leaf for name, leaf in params.items() if name != "output"}
    source = write(tmp_path / "model.gguf", params, left_out=["output.weight"])
    converter.convert(source, tmp_path / "out")
    config = pretrained.load_config(tmp_path / "out")
    assert config.tied
    assert_same(pretrained.load_params(tmp_path / "out", config), tied)


def test_quantized_weights_are_expanded(tmp_path, params):
    source = write(tmp_path / "model.gguf", params, quantized=["blk.1.attn_q.weight", "blk.0.ffn_up.weight"])
    converter.convert(source, tmp_path / "out")
    loaded = pretrained.load_params(tmp_path / "out", CONFIG)
    for group, name in (("attention", "q"), ("mlp", "up")):
        actual, exact = (tree["layers"][group][name]["kernel"] for tree in (loaded, params))
        error = float(abs(actual - exact).max())
        assert 0 < error < float(abs(exact).max()) / 200
    assert_same(loaded["layers"]["mlp"]["down"], params["layers"]["mlp"]["down"])


def test_bfloat16_halves_the_file(tmp_path, params):
    source = write(tmp_path / "model.gguf", params)
    converter.main([f"--source={source}", f"--out={tmp_path / 'wide'}"])
    converter.main([f"--source={source}", f"--out={tmp_path / 'half'}", "--dtype=bfloat16"])
    wide, half = ((tmp_path / name / SINGLE).stat().st_size for name in ("wide", "half"))
    assert half < 0.6 * wide
    loaded = pretrained.load_params(tmp_path / "half", CONFIG)
    np.testing.assert_array_equal(loaded["embedding"], params["embedding"].astype("bfloat16").astype("float32"))


def test_tokenizer(tmp_path, params):
    converter.convert(write(tmp_path / "model.gguf", params), tmp_path / "out")
    tokenizer = pretrained.load_tokenizer(tmp_path / "out")

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

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


def pieces_of(meta, text, **changes):
    entries = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    tokenizer, _ = gguf_tokenizer.read_tokenizer(entries | meta)
    return tokenizer.encode(text).tokens


def test_begin_and_end_tokens_are_added_where_the_file_says_so_or_its_kind_does():
    both = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    assert pieces_of(both, "hello") == ["<|start|>", "hello", "<|end|>"]
    assert pieces_of({}, "hello") == ["hello"]
    assert pieces_of({"tokenizer.ggml.pre": "qwen2"}, "hello") == ["hello"]
    assert pieces_of({"tokenizer.ggml.pre": "llama-bpe"}, "hello") == ["<|start|>", "hello"]
    assert pieces_of({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, "hello") == ["hello"]


def test_pre_tokenizers_split_as_their_models_do():
    none = {"tokenizer.ggml.merges": [], "tokenizer.ggml.add_bos_token": False}
    qwen, llama = none | {"tokenizer.ggml.pre": "qwen2"}, none | {"tokenizer.ggml.pre": "llama-bpe"}
    joined = {"tokenizer.ggml.merges": MERGES, "tokenizer.ggml.add_bos_token": False}
    assert pieces_of(joined | {"tokenizer.ggml.pre": "qwen2"}, "12") == ["1", "2"]  # digits stand alone
    assert pieces_of(joined | {"tokenizer.ggml.pre": "llama-bpe"}, "12") == ["12"]  # up to three together
    assert pieces_of(llama, "hello") == ["hello"]  # a whole word that is a token needs no merges
    assert pieces_of(qwen, "hello") == list("hello")
    assert pieces_of(qwen, "e\u0301") == pieces_of(qwen, "é") != pieces_of(llama, "e\u0301")


SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SPM_WORDS = ["▁t", "he", "▁the", "in", "▁", "t", "h", "e", "i", "n", "re", "r"]  # ids rise, so scores fall
SPM_TYPES = [2, 3, 3, *[6] * 256, *[1] * len(SPM_WORDS), 4]


def spm(**changes):
    tokens = [*SPM_TOKENS, *SPM_WORDS, "<image>"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": SPM_TYPES,
        "tokenizer.ggml.scores": [-float(i) for i in range(len(tokens))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | changes


def test_sentencepiece_tokenizers():
    tokenizer, settings = gguf_tokenizer.read_tokenizer(spm())
    assert tokenizer.encode("the in there").tokens == ["<s>", "▁the", "▁", "in", "▁the", "re"]
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("the<image>in").tokens == ["<s>", "▁the", "<image>", "in"]
    text = "the  in\nthere é🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")
    without, _ = gguf_tokenizer.read_tokenizer(spm() | {"tokenizer.ggml.add_space_prefix": False})
    assert without.encode("the").tokens == ["<s>", "t", "he"]


def test_unused_rows_behind_a_vocabulary_are_special():
    """So no answer holds them, as where a directory's tokenizer has no name for them."""
    meta = spm()
    for name, entry in (("tokens", "[PAD270]"), ("token_type", 5), ("scores", -270.0)):
        meta[f"tokenizer.ggml.{name}"] = [*meta[f"tokenizer.ggml.{name}"], entry]
    tokenizer, _ = gguf_tokenizer.read_tokenizer(meta)
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added["[PAD270]"] and not added["<image>"]


def test_gemmas_sentencepiece_orders_merges_by_id_and_spells_spaces():
    meta = spm() | {"general.architecture": "gemma3"}
    words = ["  ", *SPM_WORDS]  # two spaces, as Gemma's files have them
    meta["tokenizer.ggml.tokens"] = [*SPM_TOKENS, *words, "<image>"]
    meta["tokenizer.ggml.token_type"] = [*SPM_TYPES[: len(SPM_TOKENS)], 4, *[1] * len(SPM_WORDS), 4]
    meta["tokenizer.ggml.scores"] = [float(i) for i in range(len(meta["tokenizer.ggml.tokens"]))]  # misleading
    tokenizer, _ = gguf_tokenizer.read_tokenizer(meta)
    assert tokenizer.encode("the there").tokens == ["<s>", "t", "he", "▁the", "re"]
    assert tokenizer.encode("in  the").tokens == ["<s>", "in", "▁▁", "t", "he"]
    assert tokenizer.decode(tokenizer.encode("in  the\n").ids) == "in  the\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(general__architecture="gemma4"),
            r"architecture 'gemma4' is not implemented \(llama, qwen2, qwen3, gemma3",
        ),
        (dict(tokenizer__ggml__model="bert"), r"tokenizer model 'bert' is not implemented \(gpt2 and llama are\)"),
        (
            dict(tokenizer__ggml__pre="falcon"),
            r"pre-tokenizer 'falcon' is not implemented \(smollm, qwen2, llama-bpe are",
        ),
        (dict(llama__expert_count=8), r"experts \(llama\.expert_count\)"),
        (dict(llama__rope__scaling__type="yarn"), r"rotary scaling \(yarn\)"),
        (
            dict(tensors=[("rope_freqs.weight", np.arange(4, dtype=np.float32) + 1)]),
            "rotary scaling .* other than linear",
        ),
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
