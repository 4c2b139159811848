"""BERT's, RoBERTa's and DistilBERT's classifiers against torch's, and files as they used to be written."""

import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meal_jax.classifiers import classifier
from meal_jax.hf import pretrained


@pytest.mark.parametrize("stem", ["Bert", "Roberta", "DistilBert"])
@pytest.mark.parametrize("labels", [2])
def test_logits_are_torchs(torch_classifier, agrees, draw_rows, stem, labels):
    types = 2 if stem == "Bert" else 1
    actual = agrees(*torch_classifier(stem, labels), draw_rows([20, 1, 7, 0, 13], types=types), spread=0.2)
    assert (actual.max_length, actual.pad) == (20, 3)


def test_token_types_are_read_by_bert_alone(torch_classifier, draw_rows):
    rows = draw_rows([8, 5])
    for stem in ("Bert", "Roberta", "DistilBert"):
        actual = classifier.load(torch_classifier(stem, 2)[1])
        apply = jax.jit(actual.apply)
        first, two = (apply(actual.params, rows.tokens, rows.mask, types) for types in (rows.types, 0 * rows.types))
        assert np.array_equal(first, two) == (stem != "Bert")


def test_other_sizes_and_activations(torch_classifier, agrees, draw_rows):
    entries = dict(hidden_act="gelu_new", type_vocab_size=3, num_hidden_layers=1)
    agrees(*torch_classifier("Bert", 1, **entries), draw_rows([5, 9]), spread=0)


def test_old_names_of_norms_and_buffers(torch_classifier, tmp_path):
    """As google-bert/bert-base-uncased is stored: gamma and beta, position ids, heads of the pretraining."""
    _, directory = torch_classifier("Bert", 2)

    def rename(name):
        return re.sub("Norm.weight", "Norm.gamma", re.sub("Norm.bias", "Norm.beta", name))

    old = {rename(name): tensor for name, tensor in load_file(directory / pretrained.SINGLE).items()}
    assert "bert.embeddings.LayerNorm.gamma" in old
    old |= {"bert.embeddings.position_ids": np.arange(20)[None], "cls.predictions.bias": np.zeros(61, np.float32)}
    save_file(old, tmp_path / pretrained.SINGLE)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    same = jax.tree.map(np.array_equal, classifier.load(tmp_path).params, classifier.load(directory).params)
    assert jax.tree.all(same)
