"""Classifiers in and out: round trips through torch, fresh heads, placement, types, and what is said of bad files."""

import dataclasses
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from meal_jax.classifiers import classifier
from meal_jax.classifiers.family import expected
from meal_jax.hf import pretrained
from meal_jax.models.lora import Lora, fold
from meal_jax.runtime import sharding

BERT = dict(
    vocab_size=29,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    max_position_embeddings=12,
    pad_token_id=1,
)
DEBERTA = BERT | dict(
    model_type="deberta-v2",
    relative_attention=True,
    pos_att_type="p2c|c2p",
    position_buckets=4,
    max_relative_positions=-1,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
)
DECODER = BERT | dict(num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-5, eos_token_id=2)
FILES = {
    "GPT2": dict(model_type="gpt2", vocab_size=29, n_embd=16, n_layer=2, n_head=2, n_positions=12, eos_token_id=1),
    "Bert": BERT | dict(model_type="bert", type_vocab_size=2),
    "Roberta": BERT | dict(model_type="roberta", type_vocab_size=1, max_position_embeddings=14),
    "DistilBert": dict(
        model_type="distilbert",
        vocab_size=29,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=20,
        max_position_embeddings=12,
        pad_token_id=1,
    ),
    "DebertaV2": DEBERTA,
    "Bart": dict(
        model_type="bart",
        vocab_size=29,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=20,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=12,
        max_position_embeddings=12,
        pad_token_id=1,
        eos_token_id=2,
    ),
    "Llama": DECODER | dict(model_type="llama"),
    "Qwen3": DECODER | dict(model_type="qwen3"),
}
TOKENS = np.array([[5, 9, 14, 3, 2], [8, 4, 2, 1, 1]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
TYPES = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
INPUTS = TOKENS, MASK, TYPES


def write_config(directory, stem, labels=2, **entries):
    """A config.json, and the configuration that is read from it."""
    entries = {"architectures": [f"{stem}ForSequenceClassification"], "num_labels": labels} | FILES[stem] | entries
    (directory / "config.json").write_text(json.dumps(entries))
    return classifier.load_config(directory)


def draw(config, seed=0):
    """Parameters of a configuration, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    flat = {
        path: jnp.asarray(
            1 + 0.5 * rng.normal(size=leaf.shape) if "norm" in path else 0.4 * rng.normal(size=leaf.shape)
        ).astype(leaf.dtype)
        for path, leaf in classifier.param_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture
def saved(tmp_path):
    """Function of a stem and labels: (directory, config, params) of a random model that `save` wrote."""

    def make(stem, labels=2, **entries):
        directory = tmp_path / stem
        directory.mkdir(exist_ok=True)
        config = write_config(directory, stem, labels, **entries)
        params = draw(config)
        classifier.save(directory, config, params)
        return directory, config, params

    return make


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def edit(directory, **entries):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# In and out.


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("stem", FILES)
def test_save_then_load_is_exact(saved, stem, labels):
    directory, config, params = saved(stem, labels)
    actual = classifier.load(directory)
    assert_same(actual.params, params)
    assert actual.config == config and (actual.labels, actual.max_length, actual.pad) == (labels, 12, 1)
    assert actual.family == FILES[stem]["model_type"]


@pytest.mark.parametrize("stem", FILES)
def test_torch_reads_what_is_saved(saved, stem):
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    directory, config, params = saved(stem, 2)
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == f"{stem}ForSequenceClassification" and not any(report.values()), report
    inputs = dict(input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(MASK).long())
    if stem == "Bert":
        inputs["token_type_ids"] = torch.tensor(TYPES)
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    actual = jax.jit(classifier.make_classifier(config, params).apply)(params, *INPUTS)
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_entries_and_files_go_along(saved, tmp_path):
    _, config, params = saved("DistilBert", 2)
    (tmp_path / "vocab.txt").write_text("a")
    names = {"0": "NO_HUMOR", "1": "HUMOR"}
    classifier.save(tmp_path / "out", config, params, settings={"id2label": names}, files=[tmp_path / "vocab.txt"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}


def test_large_models_are_stored_in_shards(saved, tmp_path):
    _, config, params = saved("Bert")
    classifier.save(tmp_path / "out", config, params, max_shard_bytes=2000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert_same(classifier.load(tmp_path / "out").params, params)


def test_bfloat16_keeps_the_head_and_the_norms_in_float32(tmp_path):
    write_config(tmp_path, "GPT2", 1)
    config = classifier.load_config(tmp_path, param_dtype="bfloat16", dtype="bfloat16")
    params = draw(config)
    classifier.save(tmp_path, config, params)
    actual = classifier.load(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert_same(actual.params, params)
    types = {path: leaf.dtype for path, leaf in traverse_util.flatten_dict(actual.params, sep="/").items()}
    wide = {path for path, dtype in types.items() if dtype == jnp.float32}
    assert wide == {path for path in types if "norm" in path or path.startswith("classifier")}
    logits = jax.jit(actual.apply)(actual.params, *INPUTS)
    exact = classifier.load(tmp_path)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - jax.jit(exact.apply)(exact.params, *INPUTS)).max()
    assert 0 < error < 0.2  # bfloat16 has three digits


def test_torchs_own_files_are_read(saved):
    torch = pytest.importorskip("torch", reason="reads torch's files")
    directory, _, params = saved("GPT2", 1)
    state = {name: torch.tensor(np.array(value)) for name, value in load_file(directory / pretrained.SINGLE).items()}
    (directory / pretrained.SINGLE).unlink()
    torch.save(state, directory / "pytorch_model.bin")
    assert_same(classifier.load(directory).params, params)


def test_without_torch_the_command_that_converts_is_given(saved, monkeypatch):
    directory, _, _ = saved("GPT2", 1)
    (directory / pretrained.SINGLE).rename(directory / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"from transformers import GPT2ForSequenceClassification as M; M\.from"
    ):
        classifier.load(directory)


PUBLISHED = {
    "GPT2": dict(vocab_size=50_257, n_embd=1280, n_layer=36, n_head=20, n_positions=1024, num_labels=1),
    "DistilBert": dict(vocab_size=30_522, dim=768, n_layers=6, n_heads=12, hidden_dim=3072, num_labels=2),
    "Bart": dict(vocab_size=50_265, d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072, num_labels=2)
    | dict(encoder_attention_heads=12, decoder_attention_heads=12, decoder_ffn_dim=3072, max_position_embeddings=1024),
    "DebertaV2": DEBERTA
    | dict(vocab_size=128_100, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    | dict(position_buckets=256, max_position_embeddings=512, pad_token_id=0, num_labels=1),
}


@pytest.mark.parametrize(
    ("stem", "count"),
    [("GPT2", 774_031_360), ("DistilBert", 66_955_010), ("Bart", 140_012_546), ("DebertaV2", 435_062_785)],
)
def test_published_sizes_have_torchs_tensors(tmp_path, stem, count):
    """The four architectures of the benchmarks' six reward models: every name and shape, none of the values."""
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    entries = {k: v for k, v in PUBLISHED[stem].items() if k != "model_type"}
    with torch.device("meta"):
        model = getattr(transformers, f"{stem}ForSequenceClassification")(
            getattr(transformers, f"{stem}Config")(**entries)
        )
    reference = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}  # tied ones once
    positions = {} if stem in ("Bart", "DebertaV2", "GPT2") else {"max_position_embeddings": 512}
    config = write_config(tmp_path, stem, **entries, **positions)
    shapes = classifier.param_shapes(config)
    rows = [row for row in classifier.family_of(config).weights(config) if row.path in shapes]
    assert {name: shape for name, (_, shape) in expected(rows, shapes).items()} == reference
    assert sum(math.prod(leaf.shape) for leaf in shapes.values()) == count


# Fresh heads.


@pytest.mark.parametrize(
    ("stem", "base", "head"),
    [
        ("GPT2", "LMHeadModel", {"classifier/kernel"}),
        ("Bert", "ForMaskedLM", {"classifier/kernel", "classifier/bias", "pooler/kernel", "pooler/bias"}),
        ("DebertaV2", "Model", {"classifier/kernel", "classifier/bias", "pooler/kernel", "pooler/bias"}),
        ("Llama", "ForCausalLM", {"classifier/kernel"}),
    ],
)
def test_a_base_model_gets_a_fresh_head(saved, stem, base, head):
    directory, _, params = saved(stem, 2)
    edit(directory, architectures=[stem + base])
    tensors = load_file(directory / pretrained.SINGLE)
    tensors = {k: v for k, v in tensors.items() if not k.startswith(("score", "classifier", "pooler", "bert.pooler"))}
    save_file(tensors | {"lm_head.weight": np.ones((29, 16), np.float32)}, directory / pretrained.SINGLE)
    with pytest.raises(
        ValueError, match=rf"describes a {stem}{base}, which has no classification head. Give fresh_head"
    ):
        classifier.load(directory)
    first, again, other = (classifier.load(directory, fresh_head=3, seed=seed) for seed in (0, 0, 1))
    assert_same(first.params, again.params)
    flat, want = (traverse_util.flatten_dict(tree, sep="/") for tree in (first.params, params))
    assert all(np.array_equal(flat[path], want[path]) for path in want.keys() - head)
    kernel = flat["classifier/kernel"]
    assert kernel.shape == (16, 3) and 0.1 < kernel.std() < 0.5  # 16 ** -0.5 is 0.25
    assert not np.array_equal(kernel, other.params["classifier"]["kernel"])
    assert all(not flat[path].any() for path in head if path.endswith("bias"))


def test_a_classifier_gets_a_fresh_head_and_keeps_its_pooler(saved):
    directory, _, params = saved("Bert", 2)
    actual = classifier.load(directory, fresh_head=1)
    assert actual.labels == 1 and actual.params["classifier"]["kernel"].shape == (16, 1)
    assert_same(actual.params["pooler"], params["pooler"])


def test_bases_by_other_names(tmp_path):
    entries = dict(architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", max_position_embeddings=12)
    (tmp_path / "config.json").write_text(json.dumps(DECODER | entries))
    config = classifier.load_config(tmp_path, fresh_head=1)
    assert (config.family, config.labels, config.decoder.norm_plus_one) == ("gemma3_text", 1, True)


def test_without_architectures_the_model_type_decides(saved):
    """As microsoft/deberta-v3-base has it."""
    directory, _, params = saved("DebertaV2", 2)
    edit(directory, architectures=None)
    assert_same(classifier.load(directory).params, params)


def test_init_draws_all(tmp_path):
    config = write_config(tmp_path, "DistilBert", 1)
    actual = classifier.init(config, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(actual.params, sep="/").items()}
    assert shapes == {path: leaf.shape for path, leaf in classifier.param_shapes(config).items()}
    logits = jax.jit(actual.apply)(actual.params, *INPUTS)
    assert np.isfinite(logits).all() and logits[0] != logits[1]


# Training: adapters and what the backward pass keeps.


def test_adapters_begin_as_nothing_and_fold_away(saved, tmp_path):
    directory, config, params = saved("Bert", 1)
    lora = Lora(rank=2, alpha=4.0, targets=r"attention/(q|v)$")
    actual = classifier.load(directory, lora=lora)
    flat = traverse_util.flatten_dict(actual.params, sep="/")
    adapters = {path for path in flat if "lora" in path}
    assert adapters == {f"layers/attention/{name}/lora_{half}" for name in "qv" for half in "ab"}
    assert not np.array_equal(flat["layers/attention/q/lora_a"], flat["layers/attention/v/lora_a"])
    assert flat["layers/attention/q/lora_a"].any() and not flat["layers/attention/q/lora_b"].any()
    apply = jax.jit(actual.apply)
    plain = jax.jit(classifier.make_classifier(config, params).apply)
    np.testing.assert_allclose(apply(actual.params, *INPUTS), plain(params, *INPUTS), atol=1e-6)
    flat = {path: leaf + 0.3 if path in adapters else leaf for path, leaf in flat.items()}
    trained = traverse_util.unflatten_dict(flat, sep="/")
    want = apply(trained, *INPUTS)
    assert np.abs(want - plain(params, *INPUTS)).max() > 0.01
    with pytest.raises(ValueError, match="Fold the adapters into their kernels first"):
        classifier.save(tmp_path / "out", actual.config, trained)
    assert not (tmp_path / "out").exists()
    classifier.save(tmp_path / "out", actual.config, fold(trained, lora))
    np.testing.assert_allclose(plain(classifier.load(tmp_path / "out").params, *INPUTS), want, atol=1e-5)
    with pytest.raises(ValueError, match="draw no dropout"):
        classifier.load(directory, lora=Lora(dropout=0.1))


def test_gradients_are_the_same_under_remat_and_finite_at_all_padding(saved):
    _, config, params = saved("DebertaV2", 1)
    mask = np.array([MASK[0], [False] * 5])
    full = dataclasses.replace(config, remat="full")

    def loss(c):
        return lambda params: classifier.make_classifier(c, params).apply(params, TOKENS, mask, TYPES)[0].sum()

    a, b = (jax.jit(jax.grad(loss(c)))(params) for c in (config, full))
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(a) if leaf.ndim > 2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


# Placement.


def test_parameters_land_where_they_are_told(saved):
    directory, _, params = saved("Bert")
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    actual = classifier.load(directory, sharding=everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(actual.params))

    def split(leaf):
        return jax.NamedSharding(mesh, jax.P(None, "fsdp") if leaf.ndim == 3 else jax.P())

    actual = classifier.load(directory, fresh_head=1, sharding=lambda tree: jax.tree.map(split, tree))
    kernel = actual.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 20)
    np.testing.assert_array_equal(kernel, params["layers"]["mlp"]["up"]["kernel"])
    assert actual.params["classifier"]["kernel"].sharding == everywhere
    with pytest.raises(ValueError, match="Parameters and shardings differ in: "):
        classifier.load(directory, sharding=lambda tree: {"pooler": jax.tree.map(split, tree["pooler"])})


@pytest.mark.parametrize("stem", FILES)
def test_reward_models_have_rules(tmp_path, stem):
    """Everything large is split over fsdp, and 50,257 tokens are no obstacle."""
    vocabulary = {"vocab_size": 257}
    shapes = classifier.param_shapes(write_config(tmp_path, stem, **vocabulary))
    mesh = sharding.make_mesh(2, 4, 1)
    tree = {"reward_models": {"humor": traverse_util.unflatten_dict(shapes, sep="/")}}
    specs = jax.tree.map(lambda placed: placed.spec, sharding.shardings(tree, mesh))["reward_models"]["humor"]
    specs = traverse_util.flatten_dict(specs, sep="/")
    for path, spec in specs.items():
        large = path.endswith("embedding") or ("layers/" in path and path.endswith("kernel"))
        assert ("fsdp" in spec) >= large, path
        assert path.startswith(("pooler", "classifier")) <= (spec == jax.P()), path


def test_logits_are_the_same_on_a_mesh(saved):
    directory, config, params = saved("DebertaV2", 1)
    want = jax.jit(classifier.make_classifier(config, params).apply)(params, *INPUTS)
    mesh = sharding.make_mesh(2, 4, 1)
    with jax.set_mesh(mesh):

        def rules(tree):
            return sharding.shardings({"reward_models": tree}, mesh)["reward_models"]

        actual = classifier.load(directory, sharding=rules)
        rows = jax.device_put([np.tile(a, (4, 1)) for a in INPUTS], sharding.batch_sharding(mesh))
        restored = jax.jit(actual.apply)(actual.params, *rows)
    assert actual.params["layers"]["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (2, 4, 20)
    np.testing.assert_allclose(restored, np.tile(want, (4, 1)), atol=1e-5)


# What is refused.


def test_long_rows_are_refused(saved):
    _, config, params = saved("GPT2")
    apply = jax.jit(classifier.make_classifier(config, params).apply)
    long = jnp.zeros((1, 13), jnp.int32)
    with pytest.raises(ValueError, match="Rows of 13 tokens are longer than the 12 positions of this gpt2 model"):
        apply(params, long, long == 0, long)


@pytest.mark.parametrize(
    ("stem", "entries", "message"),
    [
        ("Bert", dict(architectures=["ElectraForSequenceClassification"]), "architecture ElectraForSequenceClassif"),
        ("Bert", dict(architectures=["BertForTokenClassification"]), "architecture BertForTokenClassification"),
        ("Bert", dict(architectures=None, model_type="electra"), "model_type electra"),
        ("Bert", dict(position_embedding_type="relative_key"), "position_embedding_type relative_key"),
        ("Bert", dict(is_decoder=True, add_cross_attention=True), "is_decoder; add_cross_attention"),
        ("Bert", dict(hidden_act="mish"), "activation mish"),
        ("Roberta", dict(quantization_config={"bits": 4}), "quantization_config"),
        ("GPT2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        ("GPT2", dict(scale_attn_weights=False), "scale_attn_weights false"),
        ("DebertaV2", dict(relative_attention=False), "relative_attention false"),
        ("DebertaV2", dict(conv_kernel_size=3), "conv_kernel_size 3"),
        ("DebertaV2", dict(embedding_size=8), "embedding_size 8"),
        ("DebertaV2", dict(attention_head_size=4), "attention_head_size 4"),
        ("DebertaV2", dict(pos_att_type="c2p|p2p"), "pos_att_type p2p"),
        ("DebertaV2", dict(pooler_hidden_act="mish"), "pooler_hidden_act mish"),
        ("Bart", dict(normalize_before=True, normalize_embedding=False), "normalize_before; normalize_embedding false"),
        ("Bart", dict(tie_word_embeddings=False), "tie_word_embeddings false"),
        ("Llama", dict(attention_bias=True), "attention_bias"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, stem, entries, message):
    with pytest.raises(ValueError, match=f"config.json asks for what is not implemented: .*{message}"):
        write_config(tmp_path, stem, **entries)


def test_bad_settings_are_named(tmp_path):
    write_config(tmp_path, "Bert")
    with pytest.raises(TypeError, match="no setting depth; they have dtype, param_dtype, remat, lora"):
        classifier.load_config(tmp_path, depth=3)
    with pytest.raises(ValueError, match="remat='some' is not one of"):
        classifier.load_config(tmp_path, remat="some")
    with pytest.raises(ValueError, match="labels=0 must be at least 1"):
        classifier.load_config(tmp_path, fresh_head=0)
    entries = json.loads((tmp_path / "config.json").read_text())
    del entries["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"config\.json has no entry 'hidden_size': it does not describe a Bert model"):
        classifier.load_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        classifier.load(tmp_path / "..")


Q1 = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != Q1}, rf"missing: {Q1}$"),
        (
            lambda t: t | {"classifier.weight": t["classifier.weight"][:1]},
            r"classifier.weight \[1, 16\] instead of \[2, 16\]",
        ),
        (lambda t: t | {Q1: t[Q1].astype(np.int8)}, rf"not floating point: {Q1} \(I8\)"),
        (
            lambda t: t | {Q1.replace("1", "2"): t[Q1]},
            r"left over: bert\.encoder\.layer\.2\.attention\.self\.query\.weight",
        ),
    ],
)
def test_wrong_tensors_are_named_before_any_is_read(saved, monkeypatch, change, message):
    directory, _, _ = saved("Bert")
    save_file(change(load_file(directory / pretrained.SINGLE)), directory / pretrained.SINGLE)
    monkeypatch.setattr(pretrained, "read_weight", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=message) as error:
        classifier.load(directory)
    assert "are not those of a BertForSequenceClassification of its config.json" in str(error.value)
    assert str(error.value).count("\n") == 1


def test_bad_parameters_are_named_and_nothing_is_written(saved, tmp_path):
    _, config, params = saved("Bert")
    bad = params | {"classifier": {"kernel": params["classifier"]["kernel"][:, :1]}}
    with pytest.raises(ValueError, match="missing, unknown or misshapen: classifier/bias, classifier/kernel"):
        classifier.save(tmp_path / "out", config, bad)
    assert not (tmp_path / "out").exists()
