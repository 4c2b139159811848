import dataclasses

import jax
import pytest

from meal_jax import config as base
from meal_jax.doctor import devices
from meal_jax.models.lora import Lora
from meal_jax.models.transformer import TransformerConfig
from meal_jax.runtime import sharding

GIB = 2**30
SEVEN = TransformerConfig(
    vocab_size=32_000, width=4096, layers=32, heads=32, kv_heads=32, head_dim=128, hidden=11_008, dtype="bfloat16",
    param_dtype="bfloat16", remat="full",
)  # fmt: skip


def small(**changes):
    config = base.default()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_the_devices_are_counted_and_an_unused_accelerator_is_a_failure(monkeypatch, tmp_path):
    [result] = devices.present()
    assert result.status == "ok" and result.detail.startswith(f"{jax.device_count()} × cpu")
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "ACCELERATORS", {str(tmp_path / "nvidia0"): "an NVIDIA GPU"})
    assert [f.status for f in devices.present()] == ["ok"]  # the CPU was asked for: JAX_PLATFORMS=cpu
    monkeypatch.delenv("JAX_PLATFORMS")
    *_, result = devices.present()
    assert result.status == "fail" and "[cuda]" in result.advice


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"mesh__data": 3}, "does not fit"), ({"batch_size": 6}, "half of config"), ({"eval__batch_size": 7}, "eval")],
)
def test_a_mesh_that_does_not_fit_is_told_before_anything_is_compiled(changes, message):
    if jax.device_count() != 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    [result], mesh = devices.laid_out(small(**changes))
    assert result.status == "fail" and message in result.detail and mesh is None
    [result, gathers], mesh = devices.laid_out(small(mesh__data=2, mesh__fsdp=4))
    assert result.status == "ok" and dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert gathers.status == "warn" and "rollout.gather=True" in gathers.advice  # else every token gathers the weights
    assert len(devices.laid_out(small(mesh__data=2, mesh__fsdp=4, rollout__gather=True))[0]) == 1


class Device:
    def __init__(self, limit):
        self.memory_stats = lambda: {"bytes_limit": limit}


@pytest.mark.parametrize(("chip", "fsdp", "status"), [(80, 1, "ok"), (14, 1, "warn"), (12, 1, "fail"), (16, 4, "ok")])
def test_memory_is_held_against_an_estimate(monkeypatch, chip, fsdp, status):
    """13.5 GB of weights in bfloat16."""
    mesh = sharding.make_mesh(1, fsdp, 1, jax.devices()[:fsdp])
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(chip * GIB)])
    config = small(data__prompt_length=128, policy__chunk=4, batch_size=8, meal__candidates=4)
    [result] = devices.memory(config, mesh, dataclasses.replace(SEVEN, lora=Lora(rank=8)))
    assert (result.name, result.status) == ("memory", status), result


def test_work_in_parts_needs_less(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(32 * GIB)])
    mesh, model = sharding.make_mesh(1, 1, 1, jax.devices()[:1]), dataclasses.replace(SEVEN, lora=Lora(rank=8))
    whole = {"data__prompt_length": 512, "batch_size": 64, "rollout__gather": True}
    [at_once] = devices.memory(small(**whole), mesh, model)
    [in_parts] = devices.memory(small(**whole, micro__gradient=2, micro__rollout=4), mesh, model)
    assert (at_once.status, in_parts.status) == ("warn", "ok") and "micro.gradient" in at_once.advice


def test_weights_that_the_rollout_gathers_count(monkeypatch):
    """13.5 GB of weights, a quarter on each of four devices, and all of them on each for the rollout."""
    mesh = sharding.make_mesh(1, 4, 1, jax.devices()[:4])
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(16 * GIB)])
    config = {"data__prompt_length": 128, "policy__chunk": 4, "batch_size": 8, "meal__candidates": 4}
    model = dataclasses.replace(SEVEN, lora=Lora(rank=8))
    [at_each_token], [once] = (devices.memory(small(**config, rollout__gather=g), mesh, model) for g in (False, True))
    assert (at_each_token.status, once.status) == ("ok", "warn") and "rollout.gather" in once.advice


def test_the_hosts_memory_stands_for_that_of_its_cpu_devices_and_sizes_must_divide():
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    [result] = devices.memory(small(), mesh, None)
    assert result.status == "ok" and "this host has free" in result.detail
    if jax.device_count() >= 8:
        odd = dataclasses.replace(SEVEN, vocab_size=32_001)
        [result] = devices.memory(small(), sharding.make_mesh(1, 1, 8, jax.devices()[:8]), odd)
        assert result.status == "fail" and "32001" in result.detail


def test_fine_tuning_is_measured_by_its_weights_alone(monkeypatch):
    mesh, model = sharding.make_mesh(1, 1, 1, jax.devices()[:1]), dataclasses.replace(SEVEN, lora=Lora(rank=8))
    for chip, status in ((4, "fail"), (16, "unknown")):
        monkeypatch.setattr(jax, "local_devices", lambda chip=chip: [Device(chip * GIB)])
        [result] = devices.memory(small(stage="sft"), mesh, model)
        assert result.status == status, result


def test_devices_sum_and_make_a_step_together():
    [result] = devices.collective()
    assert result.status == "ok" and f"over {jax.device_count()} devices" in result.detail
    sizes = (2, 2, 2) if jax.device_count() == 8 else (1, 1, 1)
    [result] = devices.small_step(sharding.make_mesh(*sizes, jax.devices()[: 8 if sizes[0] == 2 else 1]))
    assert result.status == "ok"


@pytest.mark.parametrize(
    ("backend", "changes", "status", "says"),
    [
        ("gpu", {}, "warn", "2.7 times as fast"),
        ("gpu", {"rollout.attention": "triton", "rollout.unstack_layers": True, "policy.attention": "cudnn"}, None, ""),
        ("cpu", {}, None, ""),
        ("cpu", {"rollout.attention": "triton"}, "warn", "interpreted on cpu"),
        ("tpu", {"policy.attention": "cudnn"}, "fail", "does not run on tpu"),
    ],
)
def test_kernels_of_a_gpu_are_advised_there_and_refused_elsewhere(backend, changes, status, says):
    config = base.default()
    config.update_from_flattened_dict(changes)
    result = list(devices.kernels(config, backend))
    assert [f.status for f in result] == ([status] if status else [])
    assert all(says in f"{f}" for f in result)
