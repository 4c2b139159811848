"""Kept features: read again to the bit, written whole or not at all, and computed again where the file is damaged."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from meal_jax.reward_training import feature_cache

X = np.arange(24, dtype=np.float32).reshape(2, 2, 6)


@pytest.mark.parametrize("name", ["features.npz", "below/features"])
def test_features_come_back_under_their_key_alone(name, tmp_path):
    path = str(tmp_path / name)
    assert feature_cache.read_cache(path, "k") == feature_cache.read_cache("", "k") == (None, 0.0)
    feature_cache.write_cache(path, "k", X, 3.5)
    x, seconds = feature_cache.read_cache(path, "k")
    np.testing.assert_array_equal(x, X)
    assert seconds == 3.5 and feature_cache.read_cache(path, "other") == (None, 0.0)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "no entry"])
def test_a_damaged_file_is_named_and_computed_again(damage, tmp_path, caplog):
    path = tmp_path / "features.npz"
    feature_cache.write_cache(str(path), "k", X, 3.5)
    whole = path.read_bytes()
    if damage == "no entry":
        np.savez(path, key="k")
    else:
        at = whole.index(X.tobytes())
        path.write_bytes({"cut": whole[:200], "empty": b"", "changed": whole[:at] + b"\xff" + whole[at + 1 :]}[damage])
    with caplog.at_level(logging.WARNING):
        assert feature_cache.read_cache(str(path), "k") == (None, 0.0)
    assert "features.npz is damaged" in caplog.text and "computed again" in caplog.text


def test_a_file_that_is_no_cache_is_not_overwritten(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"config\.cache=.*pairs\.jsonl is not a file of kept features.*name another"):
        feature_cache.read_cache(str(tmp_path / "pairs.jsonl"), "k")


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "features.npz"
    feature_cache.write_cache(str(path), "k", X, 3.5)

    def cut(file, **_):
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        feature_cache.write_cache(str(path), "new", X, 1.0)
    assert feature_cache.read_cache(str(path), "k")[1] == 3.5 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_key_tells_rows_base_and_cut_apart():
    rows = [SimpleNamespace(prompt=[1, 2], responses=([3], [4]))]
    base = {"w": np.zeros(2)}
    keys = {
        feature_cache.cache_key(rows, base, 6),
        feature_cache.cache_key(rows, base, 7),
        feature_cache.cache_key(rows, {"w": np.ones(2)}, 6),
        feature_cache.cache_key(rows[:0], base, 6),
    }
    assert len(keys) == 4
