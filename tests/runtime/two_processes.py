"""What each of two processes does in `distributed_test.py`: the parts of a run, without a model to compile.

    python two_processes.py FOLDER --coordinator=… --processes=2 --process=i

FOLDER/from_one holds a checkpoint that one process wrote; this leaves FOLDER/from_two.
"""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import app

from meal_jax.runtime import distributed


def main(argv):
    folder = Path(argv[1])
    with distributed.end_together():
        distributed.start_as_flags_say()
        agreeing(folder)
        scoring()
        checkpoints(folder)
        print("all well")


def agreeing(folder):
    import jax

    from meal_jax.runtime import sharding

    me = jax.process_index()
    assert distributed.from_first(lambda: {"from": me, "many": [0.1] * 100}) == {"from": 0, "many": [0.1] * 100}
    with pytest.raises(FileNotFoundError if me == 0 else RuntimeError, match="nowhere"):
        distributed.from_first(lambda: Path("/nowhere").read_text())
    distributed.check_shared(folder / "shared" / "run")
    assert me == 1 or not list((folder / "shared" / "run").iterdir())
    with pytest.raises(ValueError, match=r"another directory for process \[1\]"):
        distributed.check_shared(folder / f"own{me}")
    with pytest.raises(ValueError, match="runs in one process"):
        distributed.refuse_several("python -m meal_jax.export")
    assert not distributed.stop_point()

    # CPUs name no slice, so each process counts as one: the data axis is split over them first.
    mesh = sharding.make_mesh(None, 2, 1, slices=2)
    assert mesh.devices.shape == (2, 2, 1)
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1]
    placed = sharding.put(np.arange(8.0), sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2,)}
    assert float(jax.jit(lambda x: (x * x).sum(), out_shardings=sharding.replicated(mesh))(placed)) == 140


def scoring():
    import jax

    from meal_jax.rewards import text
    from meal_jax.rewards.formats import Encoded
    from meal_jax.runtime import sharding

    me, mesh = jax.process_index(), sharding.make_mesh()
    asked = []

    def length(prompts, responses):
        asked.extend(responses)
        return [len(r) for r in responses]

    model = text.ModelReward(
        lambda prompt, response: Encoded([len(prompt), len(response)], [0, 0]),
        lambda params, tokens, mask, types: params * (tokens * mask).sum(-1).astype(float),
        sharding.put(np.float32(2), sharding.replicated(mesh)),
        mesh,
        limit=64,
        pad=9,
        batch_size=3,
    )
    scorer = text.TextScorer(("a", "b", "c"), (length, model, None), {}, lambda row: "x" * int(row.sum()))
    tokens = np.arange(15, dtype=np.int32).reshape(5, 3, 1)
    scores, cost = scorer.complete(["p"] * 5, tokens, np.ones((5, 3, 1), bool), np.zeros((5, 3, 1), np.float32) - 1)
    np.testing.assert_array_equal(scores[..., 0], tokens[..., 0])
    np.testing.assert_array_equal(scores[..., 1], 2 * (1 + tokens[..., 0]))
    assert np.all(scores[..., 2] == -1) and cost["score/known"] == 0
    assert [len(r) for r in asked] == (list(range(8)) if me == 0 else list(range(8, 15)))  # each its share

    def fails_here(prompts, responses):
        if me == 1:
            raise KeyError("mine")
        return [1.0] * len(responses)

    with pytest.raises(KeyError if me == 1 else RuntimeError, match="mine" if me == 1 else r"process \[1\]"):
        text.TextScorer(("a",), (fails_here,), {}, str).complete(["p"], tokens[:1], tokens[:1] >= 0, tokens[:1, :, :0])

    def nan(p, r):
        return [float("nan") if "14" in x else 0.0 for x in r]

    with pytest.raises(FloatingPointError, match="1 of 15"):  # in process 1's share, and refused by both
        text.TextScorer(("a",), (nan,), {}, str).complete(["p"] * 5, tokens, tokens >= 0, tokens[..., :0])


def checkpoints(folder):
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from meal_jax.runtime import checkpoint, sharding
    from tests.runtime.checkpoint_test import DAMAGE, META, SHAPE, make_state

    me, mesh = jax.process_index(), sharding.make_mesh(2, 2, 1)

    def where(a):
        return NamedSharding(mesh, P(None, ("data", "fsdp")) if a.shape == SHAPE else P())

    local = make_state(sharding.make_mesh(1, 1, 1, jax.local_devices()[:1]))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where(a)), local)
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("absl").addHandler(handler)

    opened = checkpoint.open_checkpoints(folder / "from_one", keep=2)
    step, state, meta = checkpoint.restore_latest(opened, like)
    assert (step, meta) == (10, META) and int(state["step"]) == 10  # restoring compares the digests of all leaves
    checkpoint.close(opened)

    # Donated while it is written, one after another, the oldest dropped.
    opened = checkpoint.open_checkpoints(folder / "from_two", keep=2)
    more = jax.jit(lambda s: s | {"step": s["step"] + 10}, donate_argnums=0)
    for index in (10, 20, 30):
        checkpoint.save(opened, index, state, META | {"at": index})
        state = more(state)
    checkpoint.close(opened)
    assert distributed.from_first(lambda: checkpoint.steps(opened)) == [20, 30]

    def damaged(kind):
        copy = folder / kind.replace(" ", "_")

        def spoil():
            shutil.copytree(folder / "from_two", copy)
            (copy / "40.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # and one half-written
            DAMAGE.get(kind, lambda path: None)(copy / "30")

        distributed.from_first(spoil)
        return checkpoint.open_checkpoints(copy, keep=2)

    read = checkpoint._read_arrays

    def read_badly(path, abstract_state):
        actual = read(path, abstract_state)
        if me == 1 and path.name == "30":
            raise OSError("a bad disk of process 1's")
        return actual

    for kind in (*DAMAGE, "one process cannot read"):
        messages.clear()
        opened = damaged(kind)
        checkpoint._read_arrays = read if kind in DAMAGE else read_badly
        step, actual, meta = checkpoint.restore_latest(opened, like)
        assert (step, meta["at"], int(actual["step"])) == (20, 20, 20), kind
        assert sum("is skipped" in message for message in messages) == 1, (kind, messages)
        assert distributed.from_first(lambda: checkpoint.steps(opened)) == [20]  # noqa: B023
        checkpoint.save(opened, 30, actual, META)  # the same step again
        checkpoint.close(opened)


if __name__ == "__main__":
    distributed.define_flags()
    app.run(main)
