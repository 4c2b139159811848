"""Directories as others write them, against transformers: ties that the files contradict, prefixes, missing entries."""

import json

import numpy as np
import pytest

from meal_jax.hf import pretrained
from meal_jax.parity import comparison

torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402 - needs torch

SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
ROWS = [[3, 5, 7, 9], [11, 2]]


@pytest.fixture
def tied(tmp_path):
    """(directory, model) of a random tied Llama."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    return tmp_path, model


def rewrite(directory, change):
    tensors = change(load_file(directory / "model.safetensors"))
    save_file({k: v.clone() for k, v in tensors.items()}, directory / "model.safetensors", metadata={"format": "pt"})


def edit(directory, **entries):
    path = directory / "config.json"
    result = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))


def assert_parity(directory):
    result = comparison.compare(str(directory), ROWS, 3)
    assert result.difference < 1e-4, result


def test_a_stored_head_that_differs_from_the_tied_embedding_is_used(tied):
    directory, _ = tied
    head = torch.randn(64, 16)
    rewrite(directory, lambda tensors: tensors | {"lm_head.weight": head})
    config = pretrained.load_config(directory)
    assert not config.tied
    np.testing.assert_array_equal(pretrained.load_params(directory, config)["output"], head.numpy())
    assert_parity(directory)


def test_a_stored_head_that_is_the_embedding_stays_tied(tied):
    directory, _ = tied
    rewrite(directory, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    config = pretrained.load_config(directory)
    assert config.tied and "output" not in pretrained.load_params(directory, config)


def test_of_tied_tensors_the_output_may_be_the_one_that_is_stored(tied):
    directory, model = tied
    rewrite(directory, lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()})
    params = pretrained.load_params(directory, pretrained.load_config(directory))
    np.testing.assert_array_equal(params["embedding"], model.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("architectures", [["LlamaModel"], None])
def test_a_model_without_head_prefix_and_architectures_is_read(tied, architectures):
    directory, _ = tied
    rewrite(directory, lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()})
    edit(directory, architectures=architectures)
    assert_parity(directory)


@pytest.mark.parametrize(("top", "text", "is_tied"), [(True, False, True), (False, True, False), (None, False, True)])
def test_gemma_3_with_vision_is_tied_as_its_top_entry_says(top, text, is_tied):
    from meal_jax.hf import families

    text_config = dict(SIZES, head_dim=8, model_type="gemma3_text", tie_word_embeddings=text)
    entries = dict(architectures=["Gemma3ForConditionalGeneration"], text_config=text_config)
    if top is not None:
        entries["tie_word_embeddings"] = top
    assert families.parse(entries, "config.json").tied is is_tied


def test_a_stored_head_of_another_height_than_the_tied_embedding_is_refused(tied):
    directory, _ = tied
    rewrite(directory, lambda tensors: tensors | {"lm_head.weight": torch.randn(68, 16)})
    with pytest.raises(ValueError, match=r"misshapen: lm_head\.weight \[68, 16\] instead of \[64, 16\]"):
        pretrained.load_params(directory, pretrained.load_config(directory))


def test_the_model_type_decides_which_decoder_it_is(tied):
    """As in transformers: here windows of attention, which a Llama has not."""
    directory, _ = tied
    edit(directory, model_type="mistral", architectures=["LlamaForCausalLM"], sliding_window=2)
    assert pretrained.load_config(directory).window == 2
    assert_parity(directory)


def test_the_context_before_scaling_outside_of_the_rotary_settings_comes_first(tied):
    directory, _ = tied
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 4096
    edit(directory, rope_parameters=rope, original_max_position_embeddings=16)
    assert pretrained.load_config(directory).rope_scaling.context == 16
    assert_parity(directory)


def test_an_adapter_beside_a_model_is_not_passed_over(tied):
    directory, _ = tied
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(FileNotFoundError, match="which belongs on the model beside it. Merge it"):
        pretrained.load_config(directory)


def test_other_things_than_models_are_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(FileNotFoundError, match=r"PEFT adapter \(of org/base\), not a model\. Merge it"):
        pretrained.load_config(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "part.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*GGUF files: name one of them"):
        pretrained.load_config(tmp_path)
