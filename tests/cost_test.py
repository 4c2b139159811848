import dataclasses
import functools
import math

import jax
import pytest
from jax.interpreters import partial_eval

from meal_jax import cost, testing
from meal_jax.meal import step as meal
from meal_jax.models.decode_attention import BLOCK
from meal_jax.models.lora import Lora
from meal_jax.rollout.weights import RolloutWeights

MODEL = {"vocab_size": 1200, "width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 160}


def products(jaxpr, loop: int, times: int = 1) -> int:
    """Operations of all matrix products of a jaxpr, scans by their length and while loops by `loop`."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        repeats = {"scan": equation.params.get("length"), "while": loop}.get(equation.primitive.name, 1)
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                total += products(inside, loop, times * repeats)
    return total


def counted(function, *args, loop: int = 1) -> int:
    """`products` of a function, without those whose results nothing uses."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return products(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], loop)


def tiny(remat="none", **options):
    t = testing.tiny(batch=4, prompt_length=20, max_new=12, model=MODEL | {"remat": remat}, **options)
    return t._replace(setup=dataclasses.replace(t.setup, forbidden=None))  # it is of testing.VOCABULARY


@pytest.mark.parametrize(
    "options",
    [
        {"adapters": Lora(4), "remat": "full", "chunk": 3, "beta": 0.1, "reuse_virtual": True},
        {"adapters": Lora(4), "remat": "full", "chunk": 3, "beta": 0.1, "hypergradient": "first_order"},
        {"adapters": Lora(4, targets="(q|v)$"), "remat": "dots", "beta": 0.1},
        {"adapters": Lora(4), "hypergradient": "none", "reuse_virtual": True},
        {"net": False, "remat": "full"},
        {"adapters": Lora(4), "conditioning": "adapter", "passes": 3},
        {"adapters": Lora(4), "conditioning": "adapter+prefix", "prompt": "preference"},
        {"adapters": Lora(4), "remat": "full", "chunk": 3, "beta": 0.1, "reuse_virtual": True, "meta_fraction": 0.5},
        {"adapters": Lora(4), "hypergradient": "first_order", "meta_fraction": 0.5},
        {},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items() if k != "adapters") or "all weights",
)
def test_operations_are_those_of_the_functions_that_run(options):
    t = tiny(**options)
    run = cost.of_setup(t.setup, 4, 20)
    expected = cost.phases(run)
    parts = [functools.partial(f, t.setup) for f in (meal.rollout, meal.score, meal.update)]
    rolled = jax.eval_shape(parts[0], t.state, t.frozen, t.batch)
    scores = jax.eval_shape(parts[1], t.frozen, t.batch, rolled.responses)
    assert counted(parts[0], t.state, t.frozen, t.batch, loop=11) == pytest.approx(expected["rollout"].flops, rel=2e-3)
    assert counted(parts[1], t.frozen, t.batch, rolled.responses) == expected["score"].flops
    # What is left out, the weight-net and the conditioning, is that small.
    result = counted(parts[2], t.state, t.frozen, t.batch, rolled, scores)
    assert result == pytest.approx(expected["update"].flops, rel=2e-3)


def test_without_remat_nothing_is_done_twice_and_with_it_the_rest_stays():
    plain, full = (cost.phases(cost.of_setup(tiny(remat, adapters=Lora(4)).setup, 4, 20)) for remat in ("none", "full"))
    assert plain["update"].repeated == 0 < full["update"].repeated
    assert full["update"].flops - full["update"].repeated == pytest.approx(plain["update"].flops)


@pytest.mark.parametrize("adapters", [None, Lora(4, targets="(q|down)$")])
def test_parameters_are_counted(adapters):
    model = MODEL | {"tied": False, "qkv_bias": True, "qk_norm": True, "post_norms": True}
    t = testing.tiny(model=model, adapters=adapters, conditioning="none")

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    c = t.setup.policy.config
    assert size(t.state.policy) == (cost.adapter_parameters(c) if adapters else cost.base_parameters(c))
    if adapters:
        assert size(t.frozen.policy) == cost.base_parameters(c)


def test_a_decoding_kernel_reads_blocks_of_keys_up_to_the_last_and_writes_no_scores():
    t = tiny()
    run = dataclasses.replace(cost.of_setup(t.setup, 4, 20), max_new=100)
    plain, kernel = (
        cost.rollout(dataclasses.replace(run, rollout_weights=RolloutWeights(attention=how)))["decode"]
        for how in ("plain", "triton")
    )
    c, rows, cache = run.model, 4 * run.candidates, run.slots + 99
    keys = [min(math.ceil((run.slots + t) / BLOCK) * BLOCK, cache) for t in range(1, 100)]
    spared = sum(2 * (cache - read) * c.kv_heads * c.head_dim * 4 for read in keys)  # keys and values, float32
    scores = 99 * (cache + 20) * c.heads * 8  # written and read
    assert min(keys) == BLOCK and max(keys) == cache
    assert plain.bytes - kernel.bytes == pytest.approx(c.layers * rows * (spared + scores))
