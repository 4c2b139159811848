"""DeBERTa's classifier against torch's: buckets, distances beyond them, the switches of its attention."""

import jax.numpy as jnp
import numpy as np
import pytest

from meal_jax.classifiers import classifier, deberta


def test_logits_are_torchs(torch_classifier, agrees, draw_rows):
    """Texts of up to 40 tokens: beyond the 8 buckets and beyond the 16 positions that these span."""
    actual = agrees(*torch_classifier("DebertaV2", 1), draw_rows([40, 1, 7, 0, 23], types=1))
    assert (actual.max_length, actual.config.terms, actual.config.buckets) == (40, ("c2p", "p2c"), 8)


@pytest.mark.parametrize(
    "entries",
    [
        dict(share_att_key=False, position_biased_input=True, type_vocab_size=2, pooler_hidden_act="tanh"),
        dict(position_buckets=-1, norm_rel_ebd="none", pos_att_type=("c2p",)),
        dict(share_att_key=False, pos_att_type=("p2c",), max_relative_positions=-1, max_position_embeddings=30),
    ],
    ids=["own matrices", "no buckets", "p2c"],
)
def test_switches(torch_classifier, agrees, draw_rows, entries):
    rows = draw_rows([30, 4, 0, 21], types=entries.get("type_vocab_size", 1))
    agrees(*torch_classifier("DebertaV2", 2, **entries), rows, spread=0.1)


@pytest.mark.parametrize(("buckets", "max_position"), [(256, 512), (8, 16), (32, 512), (0, 16)])
def test_buckets_are_torchs(buckets, max_position):
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    from transformers.models.deberta_v2 import modeling_deberta_v2 as reference

    distance = np.arange(-1100, 1101)
    want = torch.tensor(distance)
    if buckets:
        want = reference.make_log_bucket_position(want, buckets, max_position).long()
    np.testing.assert_array_equal(deberta.bucket(distance, buckets, max_position), want.numpy())


def test_buckets_by_hand():
    near = np.arange(-4, 5)
    np.testing.assert_array_equal(deberta.bucket(near, 8, 16), near)
    np.testing.assert_array_equal(deberta.bucket(np.array([5, 6, 7, 15, -15]), 8, 16), [5, 5, 6, 7, -7])


def test_distances_beyond_the_table_read_its_ends(torch_classifier):
    rows = deberta.rows_by_distance(classifier.load_config(torch_classifier("DebertaV2", 1)[1]), 40)
    assert rows.shape == (79,) and (rows[0], rows[39], rows[-1]) == (0, 8, 15)
    assert (np.diff(rows) >= 0).all() and (rows[:20] == 0).all() and (rows[-20:] == 15).all()


def test_shift_reads_along_the_diagonals():
    x = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    want = [[[x[b, i, 2 - i + j] for j in range(3)] for i in range(3)] for b in range(2)]
    np.testing.assert_array_equal(deberta.shift(jnp.asarray(x)), want)
    assert deberta.shift(jnp.ones((1, 1))).shape == (1, 1)
