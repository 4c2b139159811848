"""The card's section on other programs says how a preference gets in, for each route."""

import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

from meal_jax.export import differences, served
from meal_jax.models.policy import Conditioning
from meal_jax.models.transformer import RopeScaling, TransformerConfig

TABLE = tuple(tuple((3, 2) for _ in range(11)) for _ in range(2))


LLAMA = TransformerConfig(vocab_size=64, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=48)
LLAMA31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
GEMMA = dataclasses.replace(LLAMA, family="gemma2", head_dim=32, query_scale=32**-0.5)
WINDOWED = {"window": 8, "local": (True, False)}


def section(reads, kind="merged", slots=(), model=LLAMA):
    return served.section(Conditioning(reads, table=TABLE if "text" in reads else ()), kind, slots, model)


def test_a_preference_in_the_template_is_a_variable_of_each_program():
    text = section("text")
    assert served.SAME in text
    for name, _, how in served.MERGED:
        assert f"| {name} |" in text and f"| {how} |" in text
    assert '"chat_template_kwargs": {"preference": […]}' in text and "extra_context" in text


@pytest.mark.parametrize(
    ("reads", "slots", "says"),
    [
        ("prefix", (5, 6), "the chat template writes it"),
        ("adapter+text", (), "the chat template writes it"),
        ("adapter", (), "it is in the weights"),
        ("none", (), "none is read"),
    ],
)
def test_where_no_request_names_one_it_says_where_it_is(reads, slots, says):
    text = section(reads, slots=slots)
    assert text.count(f"| {says} |") == len(served.MERGED) and "preference=[…]" not in text


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_a_prompt_read_at_another_preference_than_in_training_is_not_called_the_same(kind):
    own = served.section(Conditioning("adapter", prompt="preference"), kind, (), LLAMA)
    assert served.SAME in own and served.ALIKE not in own
    assert served.ALIKE in section("adapter", kind) and served.SAME not in section("adapter", kind)


def test_embeddings_and_adapters_are_for_the_programs_that_were_run():
    assert f"{served.TRANSFORMERS}, {served.MLX} and {served.VLLM}, which take embeddings" in section("prefix")
    assert f"{served.TRANSFORMERS}, {served.PEFT} and {served.VLLM}, which" in section("prefix", "adapter")
    assert "llama.cpp's server, openvino-genai and ctranslate2 take none" in section("prefix")
    assert "no preference is written" in section("text", "adapter") and served.PEFT in section("text", "adapter")
    assert "no preference is written" in section("adapter+text", "adapter")
    assert "no preference is written" not in section("adapter", "adapter")


@pytest.mark.parametrize(
    ("model", "met"),
    [
        (LLAMA, []),
        (dataclasses.replace(LLAMA, rope_scaling=RopeScaling("linear", 4.0)), []),
        (dataclasses.replace(LLAMA, rope_scaling=LLAMA31), ["ctranslate2: computes as without it"]),
        (dataclasses.replace(LLAMA, head_dim=32), ["ctranslate2: refused"]),
        (GEMMA, []),
        (dataclasses.replace(GEMMA, logit_softcap=30.0), ["ctranslate2: leaves them out"]),
        (dataclasses.replace(GEMMA, query_scale=24**-0.5), ["ctranslate2: takes the head's size"]),
        (dataclasses.replace(GEMMA, **WINDOWED), ["ctranslate2: attends beyond", "mlx-lm: attends beyond"]),
        (dataclasses.replace(LLAMA, family="mistral", window=8, local=(True, True)), ["mlx-lm: attends beyond"]),
        (dataclasses.replace(LLAMA, family="granite", query_scale=0.1), ["ctranslate2: refused"]),
        (
            dataclasses.replace(
                GEMMA, family="gemma3_text", local_rope_base=1e4, rope_scaling=RopeScaling("linear", 8.0), **WINDOWED
            ),
            ["ctranslate2: leaves the scaling out"],
        ),
    ],
)
def test_what_other_programs_compute_otherwise_is_said_of_the_models_that_meet_it(model, met):
    found = [f"{d.program.split()[0]}: {d.does}" for d in differences.of(model)]
    assert len(found) == len(met) and all(a.startswith(b) for a, b in zip(found, met, strict=True))
    assert section("adapter", model=model).count("\n- ") == len(met)
    assert section("prefix", model=model).count("\n- ") == sum(name.startswith("mlx") for name in met)
    assert "\n- " not in section("adapter", "adapter", model=model)


def test_the_page_has_all_of_them():
    assert differences.table() in (Path(__file__).parents[2] / "docs" / "exports.md").read_text()


def test_the_versions_are_those_that_the_tests_run():
    """A new version here is tried by matrix.py, and then named in runtimes.py."""
    for package, named in (("transformers", served.TRANSFORMERS), ("peft", served.PEFT)):
        pytest.importorskip(package)
        installed = importlib.metadata.version(package)
        assert named.split()[1].rpartition(".")[0] == installed.rpartition(".")[0], "minor versions differ"
