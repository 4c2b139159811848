"""The peer, run in miniature: it does the same work, and a difference is noticed."""

import json

import jax
import pytest

from meal_jax.bench import peer as peers
from meal_jax.bench import runs
from meal_jax.bench.phases import Side, open_bench

for _name in ("torch", "transformers", "peft"):
    pytest.importorskip(_name, reason="the peer needs the extra `bench`")


def test_the_peer_is_measured_beside_and_agrees(small, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    result = {}
    check = peers.check

    def wrong(opened, side, peer, folder):
        """The check itself, and once more with the peer's adapters scaled by another alpha."""
        result["agreed"] = check(opened, side, peer, folder)
        small.policy.lora_alpha = 8.0
        other = Side(open_bench(small), "static")
        with pytest.raises(ValueError, match="do not do the same work"):
            check(opened, other, peer, folder)
        return result["agreed"]

    monkeypatch.setattr(peers, "check", wrong)
    results = runs.bench(small, tmp_path, phases=("rollout", "update"), repeats=2, vs="hf")
    assert result["agreed"]["loss"] < 1e-4
    assert results["peer"]["response_tokens"] == 4 * 2 * 3
    rows = {(row["side"], row["phase"]) for row in results["rows"]}
    assert rows == {("static", "rollout"), ("static", "update")} | {
        ("hf", p) for p in ("rollout", "score", "update", "step")
    }
    ratios = results["ratios"]["peer's seconds / ours"]
    assert set(ratios) == {"static rollout", "static update"}
    assert json.loads((tmp_path / "bench.json").read_text())["peer"]["agreement"] == result["agreed"]


def test_a_peer_that_fails_says_why(small, tmp_path):
    opened = open_bench(small)
    with jax.set_mesh(opened.mesh):
        side = Side(opened, "static")
        with peers.start(opened, side, tmp_path, peers.Sampler(merged=True, cache="static")) as peer:
            assert peer.facts["cache"] == "static"
            # Each response ends after its own number of tokens, the longest before the maximum of 3.
            assert peer.ask("uneven", limits=[[1, 2], [2, 2], [1, 1], [2, 1]])["tokens"] == 12
            with pytest.raises(RuntimeError, match="nonsense"):
                peer.ask("nonsense")
