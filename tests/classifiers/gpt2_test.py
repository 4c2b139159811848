"""GPT-2's classifier against torch's: padding, edges, labels, and which token is the last."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meal_jax.classifiers import classifier
from meal_jax.hf import pretrained


@pytest.mark.parametrize("labels", [1, 3])
def test_logits_are_torchs(torch_classifier, agrees, draw_rows, labels):
    actual = agrees(*torch_classifier("GPT2", labels), draw_rows([20, 1, 7, 0, 13]))
    assert (actual.max_length, actual.pad) == (20, 3)


def test_an_end_token_of_the_text_is_read_where_pad_and_end_are_one(torch_classifier, draw_rows):
    """torch looks for the last id that is not pad and so scores the text without its end; told of another pad, it does not."""
    model, directory = torch_classifier("GPT2", 1)
    rows = draw_rows([6, 9], end=3)
    actual = classifier.load(directory)
    restored = jax.jit(actual.apply)(actual.params, rows.tokens, rows.mask, rows.types)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        model.config.pad_token_id = 60
        whole = [model(torch.tensor(rows.tokens[i : i + 1, :n])).logits.numpy()[0] for i, n in enumerate(rows.lengths)]
        model.config.pad_token_id = 3
        cut = [model(torch.tensor(rows.tokens[i : i + 1, :n])).logits.numpy()[0] for i, n in enumerate(rows.lengths)]
    np.testing.assert_allclose(restored, whole, atol=1e-4, rtol=0)
    assert (np.abs(np.subtract(whole, cut)) > 0.1).all()


def test_a_file_without_prefix_and_with_buffers_reads_the_same(torch_classifier, tmp_path):
    """As openai-community/gpt2 is stored: names of the base model alone, the causal masks along."""
    _, directory = torch_classifier("GPT2", 1)
    old = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(directory / pretrained.SINGLE).items()
    }
    old |= {"h.0.attn.bias": np.ones((1, 1, 20, 20), np.float32), "h.0.attn.masked_bias": np.float32([-1e4])}
    save_file(old, tmp_path / pretrained.SINGLE)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    same = jax.tree.map(np.array_equal, classifier.load(tmp_path).params, classifier.load(directory).params)
    assert jax.tree.all(same)
