"""Tiny random classifiers in torch, the reference that ours are held against, and the comparison itself."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.classifiers import classifier

COMMON = dict(vocab_size=61, attn_implementation="eager")
BERT = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=20,
    layer_norm_eps=1e-2,
    hidden_act="gelu",
    pad_token_id=3,
)
DECODER = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=40,
    max_position_embeddings=20,
    rms_norm_eps=1e-2,
    pad_token_id=3,
    bos_token_id=None,
    eos_token_id=None,
)
SIZES = {
    "GPT2": dict(n_embd=24, n_layer=3, n_head=3, n_positions=20, n_inner=40, layer_norm_epsilon=1e-2, pad_token_id=3),
    "Bert": BERT | dict(type_vocab_size=2),
    "Roberta": BERT | dict(type_vocab_size=1, max_position_embeddings=24),
    "DistilBert": dict(dim=24, n_layers=3, n_heads=3, hidden_dim=40, max_position_embeddings=20, pad_token_id=3),
    "DebertaV2": BERT
    | dict(
        type_vocab_size=0,
        max_position_embeddings=40,
        max_relative_positions=16,
        position_buckets=8,
        relative_attention=True,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        pooler_hidden_act="gelu",
    ),
    "Bart": dict(
        d_model=24,
        encoder_layers=3,
        encoder_attention_heads=3,
        encoder_ffn_dim=40,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
        max_position_embeddings=20,
        pad_token_id=3,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=5,
    ),
    "Llama": DECODER,
    "Qwen2": DECODER,
    "Gemma3Text": DECODER
    | dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 2)
    | dict(num_hidden_layers=4, query_pre_attn_scalar=8),
}
CONFIGS = {"Gemma3Text": "Gemma3TextConfig"}


@pytest.fixture(scope="session")
def torch_classifier(tmp_path_factory):
    """Function of a stem ("Bert"), labels and config entries that gives (torch model, directory), made once a session.

    Every parameter is drawn, large enough that logits differ by units: zeros and ones would hide a bias or a scale that
    is not read, and sizes differ wherever they can.
    """
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # waiting threads cost a hundred times the work of so small a model

    @functools.cache
    def make(stem, labels=2, task="ForSequenceClassification", **entries):
        config = getattr(transformers, CONFIGS.get(stem, f"{stem}Config"))
        entries = COMMON | SIZES[stem] | {k: list(v) if isinstance(v, tuple) else v for k, v in entries.items()}
        model = getattr(transformers, stem + task)(config(num_labels=labels, **entries)).float().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and name.endswith("weight"):
                    parameter.uniform_(0.5, 1.5, generator=generator)
                else:
                    head = name.startswith(("score", "classifier", "classification_head"))
                    parameter.normal_(0, 1.0 if head else 0.3, generator=generator)
        directory = tmp_path_factory.mktemp(stem)
        model.save_pretrained(directory)
        return model, directory

    return make


class Rows(NamedTuple):
    """Texts: lengths [R], tokens [R, T], mask [R, T], types [R, T] (0, then 1 in a text's second half), numpy."""

    lengths: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    types: np.ndarray


@pytest.fixture(scope="session")
def draw_rows():
    """Function of texts' lengths that gives Rows. Tokens are neither 2 nor 3, but that `end` is the last of each text."""

    def draw(lengths, *, pad=3, end=None, types=2, seed=0):
        rng = np.random.default_rng(seed)
        lengths, maximum = np.asarray(lengths), max(lengths)
        mask = np.arange(maximum) < lengths[:, None]
        tokens = np.where(mask, rng.choice(np.setdiff1d(np.arange(61), [2, 3]), mask.shape), pad)
        if end is not None:
            tokens = np.where(np.arange(maximum) == lengths[:, None] - 1, end, tokens)
        second = np.where(mask, np.arange(maximum) >= lengths[:, None] / 2, 0)
        return Rows(lengths, tokens, mask, second * (types > 1))

    return draw


def torch_logits(model, tokens, mask, types):
    """What torch gives for rows, [R, labels]."""
    import torch

    takes_types = model.config.model_type in ("bert", "roberta", "deberta-v2")
    inputs = dict(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
    if takes_types:
        inputs["token_type_ids"] = torch.tensor(types).long()
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.fixture(scope="session")
def agrees():
    """Function that compares a torch model's directory, loaded here, with the model on some rows.

    The reference reads each text alone and without padding, and all of them in one padded batch; ours reads them in one
    batch with a row that is all padding, and then with other ids where the padding is.
    """

    def check(model, directory, rows, spread=0.3):
        actual = classifier.load(directory)
        assert (actual.labels, actual.family) == (model.config.num_labels, model.config.model_type)
        real = np.flatnonzero(rows.lengths)

        def first(a, i):
            return a[i : i + 1, : rows.lengths[i]]

        alone = np.concatenate(
            [torch_logits(model, *(first(a, i) for a in (rows.tokens, rows.mask, rows.types))) for i in real]
        )
        assert np.isfinite(alone).all() and (alone.std(axis=0) > spread).all(), alone
        batch = torch_logits(model, *(a[real] for a in (rows.tokens, rows.mask, rows.types)))
        np.testing.assert_allclose(batch, alone, atol=1e-4, rtol=0)  # else the rows are none to compare on
        apply = jax.jit(actual.apply)
        restored = apply(actual.params, rows.tokens, rows.mask, rows.types)
        assert restored.shape == (len(rows.lengths), actual.labels) and restored.dtype == jnp.float32
        assert jnp.isfinite(restored).all()
        np.testing.assert_allclose(restored[real], alone, atol=1e-4, rtol=0)
        other = apply(actual.params, np.where(rows.mask, rows.tokens, 2), rows.mask, np.where(rows.mask, rows.types, 1))
        np.testing.assert_allclose(other[real], alone, atol=1e-4, rtol=0)
        return actual

    return check
