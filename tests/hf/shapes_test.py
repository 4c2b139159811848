"""Sizes of published models, against the numbers of parameters that they are known by."""

import pytest

from meal_jax import cost
from meal_jax.hf import families, known, shapes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the hub's pages of the safetensors files count them
        ("SmolLM2-135M", 134_515_008), ("SmolLM2-1.7B", 1_711_376_384),
        ("Llama-2-7b", 6_738_415_616), ("Llama-2-13b", 13_015_864_320), ("Llama-3.1-8B", 8_030_261_248),
    ],
)  # fmt: skip
def test_parameters_are_as_published(name, parameters):
    assert cost.base_parameters(shapes.load_config(name)) == parameters


def test_a_path_or_id_that_ends_in_a_name_will_do(chat_model):
    assert shapes.entries("weights/SmolLM2-135M-Instruct") is known.DECODERS["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert shapes.entries("meta-llama/Llama-2-7b-hf") is known.DECODERS["meta-llama/Llama-2-7b-hf"]
    assert families.parse(shapes.entries(str(chat_model)), "").width == 16
