from types import SimpleNamespace

from meal_jax.runtime import compiler, sharding


def test_only_a_tpus_compiler_is_told_something():
    assert compiler.options(sharding.replicated(sharding.make_mesh())) is None
    tpu = SimpleNamespace(device_set=(SimpleNamespace(platform="tpu"),))
    assert compiler.options(tpu) == compiler.TPU and not any(compiler.TPU.values())
