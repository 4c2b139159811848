"""What merging loses, against a naive computation in NumPy; and what is said of it."""

import ml_dtypes
import numpy as np
import pytest

from meal_jax.export import __main__ as command_line
from meal_jax.export import rounding
from meal_jax.models.lora import Lora, fold
from meal_jax.models.transformer import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=8,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    hidden=24,
    lora=Lora(rank=2, alpha=6.0, targets="q$"),
)


def parameters(scale):
    """A kernel stored in bfloat16 and factors whose product has about the size `scale`."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 16, 16)).astype(ml_dtypes.bfloat16)
    a, b = rng.normal(size=(2, 16, 2)).astype(np.float32), scale * rng.normal(size=(2, 2, 16)).astype(np.float32)
    b[1] *= 10
    layer = "transformer/layers/attention/q"
    return {f"{layer}/kernel": kernel, f"{layer}/lora_a": a, f"{layer}/lora_b": b}


def naive(flat, dtype):
    kernel, a, b = (np.asarray(leaf, np.float32) for leaf in flat.values())
    out = []
    for i in range(2):
        delta = 3.0 * a[i] @ b[i]
        total = kernel[i] + delta
        out.append((((total.astype(dtype).astype(np.float32) - total) ** 2).sum(), (delta**2).sum()))
    return np.array(out)


@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 1e-4), ("bfloat16", 1e-1), ("float32", 1e-4)])
def test_the_share_lost_is_the_naive_one_by_tensor_and_overall(dtype, scale):
    flat = parameters(scale)
    lost = rounding.measure(flat, CONFIG, dtype)
    squares = naive(flat, ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    expected = np.sqrt(squares[:, 0] / squares[:, 1])
    np.testing.assert_allclose([lost.shares[name] for name in names], expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(lost.overall, np.sqrt(squares[:, 0].sum() / squares[:, 1].sum()), rtol=1e-3, atol=1e-7)
    if dtype == "float32":
        assert lost.overall < 1e-3 and "--dtype" not in lost.say()
    else:
        assert lost.worst == (names[0], lost.shares[names[0]])  # the smaller update
        assert ("export with --dtype=float32" in lost.say()) == (lost.overall > rounding.LARGE) == (scale == 1e-4)


def test_an_update_of_zero_loses_nothing_and_without_adapters_nothing_is_measured():
    flat = parameters(0.0)
    assert rounding.measure(flat, CONFIG, "bfloat16").overall == 0.0
    kernel = "transformer/layers/attention/q/kernel"
    assert rounding.measure({kernel: flat[kernel]}, CONFIG, "bfloat16") is None


def test_folding_into_float32_keeps_what_bfloat16_loses():
    flat = parameters(1e-4)
    kernel, a, b = (np.asarray(leaf, np.float32) for leaf in flat.values())
    tree = {"q": {name.rpartition("/")[2]: leaf for name, leaf in flat.items()}}
    exact, rounded = fold(tree, CONFIG.lora, "float32")["q"]["kernel"], fold(tree, CONFIG.lora)["q"]["kernel"]
    np.testing.assert_allclose(exact, kernel + 3.0 * a @ b, rtol=1e-6, atol=1e-7)
    assert exact.dtype == np.float32 and rounded.dtype == ml_dtypes.bfloat16


def test_the_command_prints_the_share_and_the_card_has_it(assistant_run, tmp_path, capsys):
    from safetensors import safe_open

    workdir = assistant_run("none")
    for dtype, name in (("bfloat16", "BF16"), (None, "F32")):
        out = tmp_path / name
        flags = [f"--checkpoint={workdir}", f"--out={out}", *([f"--dtype={dtype}"] if dtype else [])]
        command_line.main(flags)
        said = capsys.readouterr().out
        card = (out / "README.md").read_text()
        sentence = next(line for line in said.splitlines() if line.startswith("Rounding the merged weights"))
        assert f"| Stored as | {dtype or 'float32'} |" in card and f"| Lost by merging | {sentence} |" in card
        with safe_open(out / "model.safetensors", "numpy") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {name}
    with pytest.raises(SystemExit, match="--dtype is the storage type of merged weights"):
        command_line.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'a'}", "--kind=adapter", "--dtype=bfloat16"])
    assert command_line.DTYPES == rounding.DTYPES
