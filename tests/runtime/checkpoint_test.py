import logging
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from meal_jax.runtime import checkpoint
from meal_jax.runtime.sharding import make_mesh

META = {"config": {"seed": 0, "name": "toy"}, "data": {"next": 7}}
SHAPE = (4, 1024)  # large enough that its bytes are the largest file


def place(state, mesh):
    """The large leaf is split, all others are replicated."""

    def put(a):
        return jax.device_put(a, NamedSharding(mesh, P(None, ("data", "fsdp")) if a.shape == SHAPE else P()))

    return jax.tree.map(put, state)


def make_state(mesh, seed=0):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, size=SHAPE, dtype=np.uint32)  # every kind of float, NaNs with payloads as well
    params = {"w": bits.view(np.float32), "b": jnp.asarray(rng.normal(size=3), jnp.bfloat16)}
    state = {
        "step": np.int32(seed),
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "flags": np.array([True, False, True]),
        "bytes": np.arange(-3, 4, dtype=np.int8),
        "key": jax.random.key(seed),
    }
    return place(jax.tree.map(jnp.asarray, state), mesh)


def abstract(state):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)


def raw(state):
    """Path → (type, bytes)."""
    out = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        kind = leaf.dtype
        if jnp.issubdtype(kind, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        out[jax.tree_util.keystr(keys)] = (str(kind), leaf.shape, np.asarray(leaf).tobytes())
    return out


@pytest.fixture
def mesh():
    return make_mesh(2, 2, 2)


@pytest.fixture
def opened(tmp_path):
    checkpointer = checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=2)
    yield checkpointer
    checkpoint.close(checkpointer)


def save_steps(opened, mesh, steps=(10, 20)):
    for step in steps:
        checkpoint.save(opened, step, make_state(mesh, step), META | {"at": step})
    checkpoint.wait(opened)


def test_nothing_to_restore(opened, mesh):
    assert checkpoint.restore_latest(opened, abstract(make_state(mesh))) is None


def test_round_trip_is_exact(opened, mesh):
    state = make_state(mesh, 3)
    checkpoint.save(opened, 3, state, META)
    step, actual, meta = checkpoint.restore_latest(opened, abstract(state))
    assert (step, meta) == (3, META)
    assert jax.tree.structure(actual) == jax.tree.structure(state)
    assert raw(actual) == raw(state)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(state), strict=True):
        assert (a.sharding, a.committed) == (b.sharding, b.committed)
        assert a.aval == b.aval  # type, weak type, shape
    np.testing.assert_array_equal(jax.random.uniform(actual["key"], 4), jax.random.uniform(state["key"], 4))


def test_restored_state_does_not_recompile_the_step(opened, mesh):
    @jax.jit
    def step(state):
        noise = jax.random.normal(jax.random.fold_in(state["key"], state["step"]), SHAPE)
        return state | {"params": state["params"] | {"w": state["params"]["w"] + noise}, "step": state["step"] + 1}

    state = step(make_state(mesh))
    checkpoint.save(opened, 1, state, META)
    _, restored, _ = checkpoint.restore_latest(opened, abstract(state))
    expected = step(state)
    compiled = step._cache_size()
    assert raw(step(restored)) == raw(expected)
    assert step._cache_size() == compiled


def test_other_topologies(opened, mesh):
    state = make_state(mesh, 5)
    checkpoint.save(opened, 5, state, META)
    for n, count in enumerate((4, 1, 8)):
        smaller = make_mesh(None, 1, 1, devices=jax.devices()[-count:])
        like = abstract(place(make_state(mesh), smaller))
        step, actual, _ = checkpoint.restore_latest(opened, like)
        assert raw(actual) == raw(state)
        assert all(leaf.sharding.device_set == set(jax.devices()[-count:]) for leaf in jax.tree.leaves(actual))
        assert actual["params"]["w"].addressable_shards[0].data.shape == (4, 1024 // count)
        state = actual
        checkpoint.save(opened, step + 1, state, META | {"n": n})  # and saves on, from there


def test_state_may_be_donated_while_it_is_written(opened, mesh):
    bump = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    state = jax.device_put(jnp.zeros((4, 1 << 20)), NamedSharding(mesh, P()))
    like = abstract(state)
    checkpoint.save(opened, 0, state, META)
    for _ in range(3):
        state = bump(state)
    jax.block_until_ready(state)
    _, actual, _ = checkpoint.restore_latest(opened, like)
    assert not np.any(np.asarray(actual))


def test_keeps_the_newest_and_leaves_a_saved_step_alone(opened, mesh):
    save_steps(opened, mesh, (10, 20, 30))
    assert checkpoint.steps(opened) == [20, 30]
    checkpoint.save(opened, 30, make_state(mesh, 99), META)
    assert opened.pending is None
    _, actual, meta = checkpoint.restore_latest(opened, abstract(make_state(mesh)))
    assert meta["at"] == 30 and raw(actual) == raw(make_state(mesh, 30))


def largest_file(step_dir):
    return max(
        (path for path in pathlib.Path(step_dir).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def flip_bit(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "array data cut short": lambda d: os.truncate(largest_file(d), largest_file(d).stat().st_size // 2),
    "a bit of the array data flipped": lambda d: flip_bit(largest_file(d)),
    "array data gone": lambda d: largest_file(d).unlink(),
    "tree metadata empty": lambda d: (d / "state" / "_METADATA").write_bytes(b""),
    "record gone": lambda d: (d / "_CHECKPOINT_METADATA").unlink(),
    "record half written": lambda d: (d / "_CHECKPOINT_METADATA").write_text('{"item_handl'),
    "a bit of the record flipped": lambda d: flip_bit(d / "_CHECKPOINT_METADATA", 0.9),
    "everything gone": lambda d: [path.unlink() for path in pathlib.Path(d).rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_is_skipped_with_a_warning(opened, mesh, caplog, damage):
    save_steps(opened, mesh)
    DAMAGE[damage](opened.directory / "20")
    with caplog.at_level(logging.WARNING, logger="absl"):
        step, actual, meta = checkpoint.restore_latest(opened, abstract(make_state(mesh)))
    assert (step, meta["at"]) == (10, 10)
    assert raw(actual) == raw(make_state(mesh, 10))
    warnings = [record.message for record in caplog.records if "is skipped" in record.message]
    assert len(warnings) == 1 and str(opened.directory / "20") in warnings[0]
    # The run goes on, saves the same step again, and finds it.
    assert checkpoint.steps(opened) == [10] and (opened.directory / "20.damaged").exists()
    save_steps(opened, mesh, (20,))
    assert checkpoint.restore_latest(opened, abstract(make_state(mesh)))[0] == 20


def test_damage_that_the_file_format_does_not_notice_is_what_the_digest_is_for(opened, mesh):
    """If this fails, the format has learnt to notice, and the digest could go."""
    save_steps(opened, mesh)
    DAMAGE["a bit of the array data flipped"](opened.directory / "20")
    actual = checkpoint.ocp.load(opened.directory / "20", abstract(make_state(mesh)))
    assert raw(actual) != raw(make_state(mesh, 20))


def test_all_damaged_is_an_error_and_moves_nothing(opened, mesh):
    save_steps(opened, mesh)
    for step in (10, 20):
        DAMAGE["array data gone"](opened.directory / str(step))
    for _ in range(2):  # a second attempt must not take the directory for an empty one
        with pytest.raises(RuntimeError, match=r"None of the checkpoints in .* can be read:\n  20: .*\n  10: "):
            checkpoint.restore_latest(opened, abstract(make_state(mesh)))


def test_half_written_is_ignored_and_removed(opened, mesh):
    save_steps(opened, mesh)
    leftover = opened.directory / "30.orbax-checkpoint-tmp"
    (leftover / "state").mkdir(parents=True)
    reader = checkpoint.open_checkpoints(opened.directory, keep=None)
    assert checkpoint.restore_latest(reader, abstract(make_state(mesh)))[0] == 20
    assert leftover.exists()
    assert checkpoint.steps(checkpoint.open_checkpoints(opened.directory, keep=2)) == [10, 20]
    assert not leftover.exists()


def test_process_killed_while_saving_leaves_the_checkpoint_before(tmp_path):
    """SIGKILL as soon as the second checkpoint begins to appear on disk."""
    code = f"""
        import jax, jax.numpy as jnp
        from meal_jax.runtime import checkpoint
        opened = checkpoint.open_checkpoints({str(tmp_path)!r}, keep=2)
        state = {{"w": jax.random.normal(jax.random.key(0), (1 << 23,))}}
        checkpoint.save(opened, 1, state, {{}})
        checkpoint.wait(opened)
        checkpoint.save(opened, 2, state, {{}})
        checkpoint.wait(opened)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("2*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert os.listdir(tmp_path) != ["1"]  # it had begun
    state = {"w": jax.random.normal(jax.random.key(0), (1 << 23,))}
    opened = checkpoint.open_checkpoints(tmp_path, keep=2)
    step, actual, _ = checkpoint.restore_latest(opened, abstract(state))
    assert step in (1, 2)  # 2 if the rename came before the signal
    assert raw(actual) == raw(state)


def test_reading_changes_nothing(opened, mesh, tmp_path):
    save_steps(opened, mesh)
    DAMAGE["array data gone"](opened.directory / "20")
    reader = checkpoint.open_checkpoints(opened.directory, keep=None)
    assert checkpoint.restore_latest(reader, abstract(make_state(mesh)))[0] == 10
    assert checkpoint.steps(reader) == [10, 20]
    with pytest.raises(ValueError, match="open for reading"):
        checkpoint.save(reader, 30, make_state(mesh), META)
    absent = checkpoint.open_checkpoints(tmp_path / "absent", keep=None)
    assert checkpoint.restore_latest(absent, abstract(make_state(mesh))) is None
    assert not (tmp_path / "absent").exists()


def test_state_of_another_config_is_refused_in_words(opened, mesh):
    save_steps(opened, mesh)
    expected = abstract(make_state(mesh))
    del expected["flags"]
    expected["extra"] = expected["params"]["b"]
    expected["params"]["w"] = jax.ShapeDtypeStruct((4, 32), jnp.float32, sharding=expected["step"].sharding)
    expected["bytes"] = jax.ShapeDtypeStruct((7,), jnp.int32, sharding=expected["step"].sharding)
    with pytest.raises(checkpoint.MismatchError) as error:
        checkpoint.restore_latest(opened, expected)
    message = str(error.value)
    assert "extra bfloat16[3]: not in the checkpoint" in message
    assert "flags bool[3]: in the checkpoint, not in this run" in message
    assert "params/w: float32[4,1024] in the checkpoint, float32[4,32] in this run" in message
    assert "bytes: int8[7] in the checkpoint, int32[7] in this run" in message  # Orbax alone would convert it
    assert "config" in message and "work directory" in message
    assert "params/b:" not in message and "step" not in message.replace("/20", "")
    assert checkpoint.steps(opened) == [10, 20]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda: 3, "bad is a int"),
        (lambda: np.zeros(3), "bad is a ndarray"),
        (lambda: jnp.asarray(1.0), "bad is weakly typed"),
    ],
)
def test_leaf_that_would_come_back_different_is_refused(opened, leaf, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.save(opened, 0, {"bad": leaf(), "good": jnp.zeros(3)}, META)
    assert checkpoint.steps(opened) == []


def test_abstract_leaf_without_sharding_is_refused(opened):
    with pytest.raises(ValueError, match="a has no sharding"):
        checkpoint.restore_latest(opened, {"a": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_error_of_a_background_save_surfaces_once(opened, mesh, monkeypatch):
    class Failed:
        def result(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save_async", lambda *_, **__: Failed())
    for surface in (checkpoint.wait, checkpoint.close, lambda c: checkpoint.save(c, 20, make_state(mesh), META)):
        checkpoint.save(opened, 10, make_state(mesh), META)
        with pytest.raises(RuntimeError, match=r"Saving a checkpoint in .* failed: .*No space left"):
            surface(opened)
        checkpoint.wait(opened)


def test_directory_that_cannot_be_written_is_reported_at_once(tmp_path, mesh):
    opened = checkpoint.open_checkpoints(tmp_path / "checkpoints", keep=1)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="Not a directory"):
        checkpoint.save(opened, 1, make_state(mesh), META)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        checkpoint.open_checkpoints(tmp_path, keep=0)


def test_digest_sees_every_change_and_no_layout(mesh):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    local = checkpoint._digests({"a": jnp.asarray(values)})
    assert local == checkpoint._digests({"a": place(jnp.asarray(values), mesh)})
    swapped = values.copy()
    swapped[0, [0, 1]] = values[0, [1, 0]]
    signed = values * np.where(np.arange(1024) == 5, -1, 1).astype(np.float32)
    others = [swapped, signed, np.nextafter(values, 9, dtype=np.float32), values.T]
    assert len({local["a"], *(checkpoint._digests({"a": jnp.asarray(other)})["a"] for other in others)}) == 5
    zeros = [jnp.zeros(3, dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int8, jnp.bool_)]
    ones = [jnp.ones_like(zero) for zero in zeros]
    assert all(checkpoint._digests([a]) != checkpoint._digests([b]) for a, b in zip(zeros, ones, strict=True))
