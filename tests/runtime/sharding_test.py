import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from meal_jax.meal.normalise import init_stats
from meal_jax.meal.weight_net import WeightNet
from meal_jax.models.lora import Lora
from meal_jax.models.policy import Conditioning, Policy
from meal_jax.models.transformer import TransformerConfig
from meal_jax.runtime import sharding


@pytest.fixture(scope="module")
def policy():
    config = TransformerConfig(
        vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=24, tied=False,
        lora=Lora(rank=4, targets=r"attention/(q|k|v|o)$|mlp/(gate|up|down)$"),
    )  # fmt: skip
    return Policy(config, Conditioning(slots=2, hidden=8))


@pytest.fixture(scope="module")
def inputs():
    tokens = jax.random.randint(jax.random.key(1), (8, 5), 0, 32)
    w = jax.random.dirichlet(jax.random.key(2), jnp.ones(2), (8, 3))
    return tokens, tokens > 3, w, jax.random.randint(jax.random.key(3), (8, 3, 4), 0, 32)


@pytest.fixture(scope="module")
def params(policy, inputs):
    """Random numbers in the shapes that `init` gives: quicker than compiling it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), shapes)


def spec_of(placed):
    leaves, _ = jax.tree_util.tree_flatten_with_path(placed)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf.spec for keys, leaf in leaves}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((None, 1, 1), (8, 1, 1)), ((2, None, 2), (2, 2, 2)), ((8, 1, None), (8, 1, 1)), ((1, 4, 2), (1, 4, 2))],
)
def test_mesh_takes_all_devices(sizes, shape):
    mesh = sharding.make_mesh(*sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_size_that_no_axis_of_the_grid_has_shares_one(monkeypatch):
    """4 on a torus of 8 × 8: jax places axes whole unless told otherwise, and says so with an error for its authors."""

    class Chip:
        platform, device_kind, process_index, slice_index, core_on_chip = "tpu", "TPU v6 lite", 0, 0, 0

        def __init__(self, x, y):
            self.coords, self.id = (x, y, 0), 8 * y + x

    chips = [Chip(x, y) for y in range(8) for x in range(8)]
    with pytest.raises(NotImplementedError):
        jax.make_mesh((1, 16, 4), sharding.AXES, devices=chips)
    monkeypatch.setattr(sharding, "Mesh", lambda grid, axes, axis_types: grid)
    grid = sharding.make_mesh(1, 16, 4, chips)
    assert grid.shape == (1, 16, 4) and len({chip.id for chip in grid.flat}) == 64
    for group in grid[0]:  # tensor is spoken along most: its four chips lie side by side
        spread = np.ptp([chip.coords for chip in group], axis=0)
        assert sorted(spread.tolist()) in ([0, 0, 3], [0, 1, 1])


def test_mesh_of_chosen_devices():
    devices = jax.devices()[2:6]
    assert set(sharding.make_mesh(None, 2, devices=devices).devices.flat) == set(devices)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((None, 3, 1), "data=None × fsdp=3 × tensor=1 does not fit 8"),
        ((2, 2, 1), "does not fit 8 device"),  # four devices would idle without a word
        ((16, 1, 1), "does not fit 8 device"),
        ((None, None, 1), "at most one is None"),
        ((0, None, 1), "sizes are positive"),
        ((-2, 1, 1), "sizes are positive"),
    ],
)
def test_mesh_that_does_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes)


class Chip:
    """A device that names its slice, as TPUs and GPUs do."""

    def __init__(self, number, slice_index, platform="gpu"):
        self.id, self.slice_index, self.platform, self.device_kind = number, slice_index, platform, "a chip"
        self.process_index = number // 4


@pytest.mark.parametrize("asked", [2, None])
def test_mesh_of_slices_splits_data_over_them_first(asked):
    chips = [Chip(i, slice_index=i % 2) for i in range(16)]  # in whatever order they are named
    mesh = sharding.make_mesh(None, 2, 2, chips, slices=asked)
    assert tuple(mesh.shape.values()) == (4, 2, 2) and mesh.axis_names == sharding.AXES
    assert mesh.axis_types == (AxisType.Auto,) * 3
    of = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert np.all(of[:2] == 0) and np.all(of[2:] == 1)  # a fsdp or tensor group never leaves its slice
    assert {chip.id for chip in mesh.devices.flat} == set(range(16))


def test_mesh_of_processes_for_slices_where_devices_name_none():
    chips = [Chip(i, slice_index=None) for i in range(8)]
    mesh = sharding.make_mesh(None, 4, 1, chips, slices=2)
    assert [[chip.process_index for chip in group.flat] for group in mesh.devices] == [[0] * 4, [1] * 4]
    cpus = [Chip(i, slice_index=0, platform="cpu") for i in range(8)]  # all of slice 0, whatever their process
    assert [chip.process_index for chip in sharding.make_mesh(devices=cpus, slices=2).devices.flat] == [0] * 4 + [1] * 4


def test_as_many_slices_as_the_devices_say_is_one_where_they_say_nothing():
    assert sharding.make_mesh(slices=None) == sharding.make_mesh()


@pytest.mark.parametrize(
    ("sizes", "slices", "chips", "message"),
    [
        (
            (1, None, 1),
            2,
            [Chip(i, i % 2) for i in range(8)],
            r"over 2 slices of 4 devices: data=1 is not a multiple of 2",
        ),
        (
            (None, 1, 1),
            4,
            [Chip(i, i % 2) for i in range(8)],
            r"slices=4, but the devices are of 2 slice\(s\). Set it to 2",
        ),
        ((None, 1, 1), 2, [Chip(i, None) for i in range(4)], r"of 1 process\(es\), each of which counts as a slice"),
        ((None, 1, 1), 2, [Chip(i, i // 3) for i in range(4)], "differ in size"),
        ((None, 1, 1), None, [Chip(i, i // 3) for i in range(4)], "differ in size"),
    ],
)
def test_slices_that_do_not_fit(sizes, slices, chips, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes, devices=chips, slices=slices)


def test_policy_rules(params):
    mesh = sharding.make_mesh(2, 2, 2)
    actual = spec_of(sharding.shardings(jax.eval_shape(lambda: params), mesh))
    layers = "transformer/layers/"
    for name in ("attention/q", "attention/k", "attention/v", "mlp/gate", "mlp/up"):
        assert actual[f"{layers}{name}/kernel"] == P(None, "fsdp", "tensor")
        assert actual[f"{layers}{name}/lora_a"] == P(None, "fsdp", None)
        assert actual[f"{layers}{name}/lora_b"] == P(None, None, "tensor")
    for name in ("attention/o", "mlp/down"):
        assert actual[f"{layers}{name}/kernel"] == P(None, "tensor", "fsdp")
        assert actual[f"{layers}{name}/lora_a"] == P(None, "tensor", None)
        assert actual[f"{layers}{name}/lora_b"] == P(None, None, "fsdp")
    assert actual["transformer/embedding"] == actual["transformer/output"] == P("tensor", "fsdp")
    small = [path for path in actual if "norm" in path or "conditioner" in path]
    assert len(small) == 7 and all(actual[path] == P() for path in small)


def test_whole_state(params):
    """Moments lie with their parameters; everything small is replicated; nothing is left over."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(1e-3))

    def make(params):
        net = WeightNet().init(jax.random.key(0), jnp.zeros((2, 16)), jnp.zeros((2, 3, 2)))["params"]
        return {
            "step": jnp.int32(0),
            "policy": params,
            "policy_opt": tx.init(params),
            "net": net,
            "net_opt": tx.init(net),
            "rewards": init_stats(2),
            "key": jax.random.key(0),
        }

    state = jax.eval_shape(make, params)
    actual = spec_of(sharding.shardings(state, sharding.make_mesh(2, 2, 2)))
    assert len(actual) == len(jax.tree.leaves(state))
    moments = [path for path in actual if "/mu/" in path or "/nu/" in path]
    assert len(moments) == 2 * (len(jax.tree.leaves(state["policy"])) + len(jax.tree.leaves(state["net"])))
    for path in moments:
        owner = path.split("/")[0].removesuffix("_opt")
        assert actual[path] == actual[f"{owner}/{path.split('/mu/')[-1].split('/nu/')[-1]}"]
    assert any(actual[path] != P() for path in moments)
    for path, spec in actual.items():
        if (
            path.split("/")[0] in ("step", "net", "net_opt", "rewards", "key")
            or "count" in path
            or "hyperparams" in path
        ):
            assert spec == P(), path


def test_forward_is_the_same_on_a_mesh(policy, params, inputs):
    forward = jax.jit(lambda p, x: policy.apply({"params": p}, *x))
    want = forward(params, inputs)
    mesh = sharding.make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        batch = jax.device_put(inputs, sharding.batch_sharding(mesh))
        actual = forward(placed, batch)
    kernel = placed["transformer"]["layers"]["attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert batch[0].addressable_shards[0].data.shape == (2, 5)
    np.testing.assert_allclose(actual, want, atol=2e-5 * float(jnp.abs(want).max()))


def test_a_pass_over_prompts_stays_split_over_the_batch_where_weights_are_split_over_fsdp(policy, params, inputs):
    tokens, mask = inputs[:2]
    mesh = sharding.make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.shardings(params, mesh))
        batch = jax.device_put((tokens, mask), sharding.batch_sharding(mesh))
        prompt = jax.jit(lambda params, *batch: policy.apply({"params": params}, *batch, method="prefill"))(
            placed, *batch
        )
    assert prompt.pooled.sharding.spec[0] in (("data", "fsdp"), "fsdp")
    assert sharding.over_batch(tokens) is tokens  # no mesh is set here


def test_unmatched_leaves_are_all_listed():
    tree = {"policy": {"gatex": jnp.zeros((3, 4)), "a": {"strange": jax.ShapeDtypeStruct((7,), jnp.float32)}}}
    tree["fine"] = {"embedding": jnp.zeros((8, 8))}
    with pytest.raises(ValueError) as error:
        sharding.shardings(tree, sharding.make_mesh())
    message = str(error.value)
    assert "policy/gatex [3, 4]: no rule matches" in message
    assert "policy/a/strange [7]: no rule matches" in message
    assert "embedding" not in message


def test_uneven_split_names_leaf_dimension_and_axis():
    tree = {"embedding": jax.ShapeDtypeStruct((30, 12), jnp.float32)}
    with pytest.raises(ValueError, match=r"embedding \[30, 12\]: dimension 0, of 30, does not divide .* tensor, of 4"):
        sharding.shardings(tree, sharding.make_mesh(1, 2, 4))
    assert spec_of(sharding.shardings(tree, sharding.make_mesh(4, 2, 1)))["embedding"] == P("tensor", "fsdp")


def test_rule_of_too_many_dimensions():
    with pytest.raises(ValueError, match=r"q/kernel \[4, 4\]: its rule .* names 3 dimensions"):
        sharding.shardings({"a": {"q": {"kernel": jnp.zeros((4, 4))}}}, sharding.make_mesh())


def test_own_rules_come_in_their_order():
    rules = ((r"special", P()), *sharding.RULES)
    tree = {"special": {"embedding": jnp.zeros((8, 8))}, "embedding": jnp.zeros((8, 8))}
    actual = spec_of(sharding.shardings(tree, sharding.make_mesh(2, 2, 2), rules))
    assert actual == {"special/embedding": P(), "embedding": P("tensor", "fsdp")}


def test_put_is_the_array_itself_part_by_part():
    split = sharding.batch_sharding(sharding.make_mesh(2, 2, 2))
    tree = {"a": np.arange(8), "b": jnp.ones((4, 3))}
    actual = sharding.put(tree, split)
    assert all(leaf.sharding == split for leaf in jax.tree.leaves(actual))
    jax.tree.map(np.testing.assert_array_equal, actual, tree)


def test_replicated():
    mesh = sharding.make_mesh(2, 2, 2)
    x = jax.device_put(jnp.arange(6.0), sharding.replicated(mesh))
    assert all(shard.data.shape == (6,) for shard in x.addressable_shards)


@pytest.mark.parametrize(("batch", "fits"), [(4, True), (8, True), (6, False), (2, False), (0, False)])
def test_batch_must_divide(batch, fits):
    mesh = sharding.make_mesh(2, 2, 2)  # data × fsdp = 4
    if fits:
        sharding.check_batch(mesh, batch, "config.batch_size")
    else:
        with pytest.raises(ValueError, match=rf"config.batch_size: {batch} does not divide .*a multiple of 4"):
            sharding.check_batch(mesh, batch, "config.batch_size")
