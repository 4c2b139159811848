"""The command that compares a checkpoint with torch: what it prints, and that it notices."""

import shutil
import sys

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from meal_jax.hf import pretrained
from meal_jax.parity import __main__ as command_line
from meal_jax.parity import comparison

torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")


def run(model, *options):
    command_line.main([f"--model={model}", "--prompts", "please thank you", "yes", "--tokens=6", *options])


def test_a_checkpoint_that_agrees(chat_model, capsys):
    run(chat_model)
    out = capsys.readouterr().out
    assert out.count("same  'please thank you'") == 1 and "DIFFERENT" not in out
    assert "greedy continuations that agree: 2 of 2, 6 tokens each" in out
    difference = float(out.split("largest difference of a logit: ")[1].split()[0])
    assert 0 < difference < 1e-4


def test_a_difference_is_shown_and_fails(chat_model, tmp_path, monkeypatch, capsys):
    """Torch reads another directory than we do."""
    other = tmp_path / "other"
    shutil.copytree(chat_model, other)
    tensors = load_file(other / pretrained.SINGLE)
    tensors["model.norm.weight"] = np.roll(tensors["model.norm.weight"], 1) * 2
    save_file(tensors, other / pretrained.SINGLE, metadata={"format": "pt"})
    torchs = comparison._torch
    monkeypatch.setattr(comparison, "_torch", lambda _, *args: torchs(str(other), *args))
    with pytest.raises(SystemExit, match=r"the models differ \(tolerance 1e-03\)"):
        run(chat_model)
    out = capsys.readouterr().out
    assert "DIFFERENT  " in out and "from token 0 on, here: " in out


@pytest.mark.parametrize("windowed", [False, True])
def test_a_window_is_kept_to_by_the_models_that_slide_alone(tmp_path, windowed):
    """The entry sliding_window of a Llama's config.json is nobody's: transformers' own cache keeps to it all the same."""
    torch.manual_seed(0)
    kind = transformers.MistralConfig if windowed else transformers.LlamaConfig
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = kind(**sizes, num_key_value_heads=2, initializer_range=0.3, sliding_window=3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = comparison.compare(str(tmp_path), [[5, 9, 3, 7, 11, 4]], 6)
    assert found.difference < 1e-4 < found.scale and found.greedy == found.expected


def test_without_torch_it_is_named(chat_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        SystemExit, match="torch, which this command compares with, is not installed: pip install torch"
    ):
        run(chat_model)


def test_what_cannot_be_read_is_named(chat_model, tmp_path):
    with pytest.raises(SystemExit, match="has no tokenizer that can be read"):
        run(tmp_path)
    for file in chat_model.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(SystemExit, match=r"has no config\.json"):
        run(tmp_path)
