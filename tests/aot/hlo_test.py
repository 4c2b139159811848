import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from meal_jax.aot import hlo
from meal_jax.runtime import sharding


def compiled(function, mesh, specs, out, *shapes):
    args = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(function, out_shardings=NamedSharding(mesh, out)).lower(*args).compile().as_text()


def test_an_all_reduce_and_an_all_gather_of_known_size():
    mesh = sharding.make_mesh(1, 8, 1)
    contracted = compiled(lambda x, w: x @ w, mesh, (P(None, "fsdp"), P("fsdp")), P(), (16, 32), (32, 64))
    result = hlo.collectives(contracted, 8)
    assert result.kinds == {"all-reduce": hlo.Sum(1, 16 * 64 * 4, 2 * 16 * 64 * 4 * 7 / 8)} and not result.at_most
    gathered = hlo.collectives(compiled(lambda x: x + 1, mesh, (P("fsdp"),), P(), (64, 8)), 8)
    assert gathered.kinds == {"all-gather": hlo.Sum(1, 64 * 8 * 4, 64 * 8 * 4 * 7 / 8)}
    assert gathered.network == 1792 and gathered.count == 1


def test_loops_multiply():
    """A layer's weights, split over fsdp, meet rows split over data: 5 layers, 5 times the bytes; in a loop of 3, 15 times."""
    mesh = sharding.make_mesh(1, 8, 1)

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def twice(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: layers(x, w), x)

    specs, shapes = (P("fsdp"), P(None, "fsdp", None)), ((1024, 32), (5, 32, 32))
    first, three = (hlo.collectives(compiled(f, mesh, specs, P("fsdp"), *shapes), 8) for f in (layers, twice))
    assert first.kinds["all-gather"] == hlo.Sum(5, 5 * 32 * 32 * 4, 5 * 32 * 32 * 4 * 7 / 8)
    assert three.network == 3 * first.network and not three.at_most


def test_a_loop_that_may_end_early_is_an_upper_bound():
    mesh = sharding.make_mesh(1, 8, 1)

    def search(x, w):

        def more(state):
            return (state[0] < 7) & jnp.any(state[1] < 100.0)

        return jax.lax.while_loop(more, lambda state: (state[0] + 1, state[1] @ w), (0, x))[1]

    result = hlo.collectives(
        compiled(search, mesh, (P(None, "fsdp"), P("fsdp")), P(None, "fsdp"), (16, 32), (32, 32)), 8
    )
    assert result.at_most
    per_step = result.network / 7
    assert per_step >= 16 * 32 * 4 * 7 / 8  # the product's partial sums come together, however XLA does it


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}, x", 4),
        ("replica_groups=[2,8]<=[8,2]T(1,0)", 8),
        ("replica_groups=[8,2]<=[16], dimensions={0}", 2),
        ("replica_groups=mesh['a'=8,'b'=1,'c'=2] {'a'}", 8),
        ("replica_groups=mesh['a'=8,'b'=4] {'a','b':(1)2}", 16),
        ("channel_id=1", 32),
    ],
)
def test_groups(text, size):
    assert hlo.group_size(text, 32) == size


def test_shapes_of_a_tpu():
    """Layouts hold brackets too; an asynchronous start gives its operand beside its result."""
    assert hlo.size("(bf16[16,8]{1,0:T(8,128)(2,1)S(1)}, f32[2]{0:T(128)}, u32[]{:S(2)})") == 16 * 8 * 2 + 8 + 4
    text = """
ENTRY %main (p: bf16[8,4]) -> bf16[32,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %s = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[32,4]{1,0:T(8,128)(2,1)}) all-gather-start(%p), replica_groups=[1,4]<=[4]
  ROOT %d = bf16[32,4]{1,0:T(8,128)(2,1)} all-gather-done(%s)
}
"""
    assert hlo.collectives(text, 4).kinds == {"all-gather": hlo.Sum(1, 256, 192)}


def test_a_reduce_scatter_in_a_fusion_of_that_name():
    text = """
%all-reduce-scatter.1 (p: f32[32,4]) -> f32[8,4] {
  %p = f32[32,4]{1,0} parameter(0)
  %r = f32[32,4]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[8,4]{1,0} slice(%r), slice={[0:8], [0:4]}
}

ENTRY %main (p: f32[32,4]) -> f32[8,4] {
  %p = f32[32,4]{1,0} parameter(0)
  ROOT %f = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert hlo.collectives(text, 4).kinds == {"reduce-scatter": hlo.Sum(1, 512, 384)}


def test_a_collective_in_pieces_counts_once():
    piece = """
%piece.{n} (p: f32[8,4]) -> f32[32,4] {{
  %p = f32[8,4]{{1,0}} parameter(0)
  ROOT %g = f32[32,4]{{1,0}} all-gather(%p), channel_id={channel}, replica_groups=[1,4]<=[4], dimensions={{0}}
}}
"""
    text = piece.format(n=1, channel=7) + piece.format(n=2, channel=7) + piece.format(n=3, channel=8)
    calls = [f"  %f{n} = f32[32,4]{{1,0}} fusion(%p), kind=kCustom, calls=%piece.{n}" for n in (1, 2, 3)]
    text += "\n".join(["ENTRY %main (p: f32[8,4]) -> f32[32,4] {", "  %p = f32[8,4]{1,0} parameter(0)", *calls, "}"])
    assert hlo.collectives(text, 4).kinds == {"all-gather": hlo.Sum(2, 1024, 768)}
