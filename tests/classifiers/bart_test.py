"""BART's classifier against torch's: the last end token, pairs with two of them, embeddings that are scaled."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meal_jax.classifiers import classifier
from meal_jax.hf import pretrained


@pytest.mark.parametrize("entries", [{}, dict(scale_embedding=True, activation_function="relu")])
def test_logits_are_torchs(torch_classifier, agrees, draw_rows, entries):
    actual = agrees(*torch_classifier("Bart", 2, **entries), draw_rows([20, 1, 7, 0, 13], end=2, types=1), spread=0.2)
    assert (actual.max_length, actual.pad) == (20, 3)


def test_the_state_is_taken_at_the_last_end_token(torch_classifier, agrees, draw_rows):
    rows = draw_rows([20, 9, 0, 13], end=2, types=1)
    rows.tokens[:, 4:6] = np.where(rows.mask[:, 4:6], 2, 3)  # as between the texts of a pair
    rows.tokens[0, [10, 19]] = 2, 7  # and a text that goes on after its last end token
    agrees(*torch_classifier("Bart", 2), rows, spread=0.1)


def test_a_text_without_an_end_token_is_read_at_its_last(torch_classifier, draw_rows):
    torch = pytest.importorskip("torch")
    model, directory = torch_classifier("Bart", 2)
    rows = draw_rows([9, 4], types=1)
    actual = classifier.load(directory)
    restored = jax.jit(actual.apply)(actual.params, rows.tokens, rows.mask, rows.types)
    for i, n in enumerate(rows.lengths):
        with torch.no_grad():
            state = model.model(torch.tensor(rows.tokens[i : i + 1, :n])).last_hidden_state[:, -1]
            np.testing.assert_allclose(restored[i], model.classification_head(state)[0], atol=1e-4, rtol=0)


def test_tied_copies_of_the_embedding_are_passed_over(torch_classifier, tmp_path):
    _, directory = torch_classifier("Bart", 2)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    want = classifier.load(directory).params
    tensors = load_file(directory / pretrained.SINGLE)
    shared = tensors.pop("model.shared.weight")
    for names in (["model.decoder.embed_tokens.weight"], ["model.encoder.embed_tokens.weight", "model.shared.weight"]):
        save_file(
            tensors | {name: shared + (name == "model.encoder.embed_tokens.weight") for name in names},
            tmp_path / pretrained.SINGLE,
        )
        assert jax.tree.all(jax.tree.map(np.array_equal, classifier.load(tmp_path).params, want))
