"""Classifiers on decoders against torch's."""

import pytest


@pytest.mark.parametrize(("stem", "labels"), [("Llama", 1), ("Qwen2", 2), ("Gemma3Text", 1)])
def test_logits_are_torchs(torch_classifier, agrees, draw_rows, stem, labels):
    actual = agrees(*torch_classifier(stem, labels), draw_rows([20, 1, 7, 0, 13]))
    assert (actual.max_length, actual.pad) == (20, 3)
    assert set(actual.params) == {"transformer", "classifier"}
