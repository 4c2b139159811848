"""PEFT loads an exported adapter of Gemma 3 with vision: on the text part alone, and with effect."""

import types

import numpy as np
import pytest
from flax import traverse_util

from meal_jax.export import model_directory
from meal_jax.hf import pretrained
from meal_jax.models import lora

torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft", reason="peft is not installed")


def test_an_adapter_of_gemma_3_with_vision_changes_the_text_part_as_merging_does(tmp_path):
    import peft

    torch.manual_seed(0)
    text = dict(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    base = tmp_path / "base"
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(base)
    adapters = lora.Lora(rank=2, alpha=4.0, targets=r"attention/(q|v)$")
    actual = pretrained.load_config(base, lora=adapters)
    params = pretrained.load_params(base, actual)
    flat, rng = traverse_util.flatten_dict({"transformer": params}, sep="/"), np.random.default_rng(0)
    for name in "qv":
        layers, width, out = flat[f"transformer/layers/attention/{name}/kernel"].shape
        for leaf, shape in (("lora_a", (layers, width, 2)), ("lora_b", (layers, 2, out))):
            flat[f"transformer/layers/attention/{name}/{leaf}"] = rng.normal(size=shape).astype(np.float32)
    run = types.SimpleNamespace(
        task=types.SimpleNamespace(transformer=actual),
        config=types.SimpleNamespace(policy=types.SimpleNamespace(source=str(base))),
    )
    (tmp_path / "adapter").mkdir()
    model_directory.save_adapter(tmp_path / "adapter", run, flat)
    merged = lora.fold(traverse_util.unflatten_dict(flat, sep="/")["transformer"], adapters)
    pretrained.save(tmp_path / "merged", pretrained.load_config(base), merged)

    def logits(model):
        with torch.no_grad():
            return model.eval()(input_ids=torch.tensor([[3, 5, 7, 9, 11]])).logits

    load = transformers.AutoModelForCausalLM.from_pretrained
    plain, expected = logits(load(base)), logits(load(tmp_path / "merged"))
    served = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert (logits(served) - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-2
    adapted = [name for name, _ in served.named_parameters() if "lora_" in name]
    assert len(adapted) == 8 and all("language_model.layers" in name for name in adapted)
