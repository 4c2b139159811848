import sys

import pytest

from meal_jax.aot import topology
from meal_jax.chips import CHIPS


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:4x8", "v5e:4x8", 32),
        ("v5e-64", "v5e:8x8", 64),
        ("V5P-8", "v5p:2x2x2", 8),
        ("v6e:2x4", "v6e:2x4", 8),
        ("h100:8", "h100:8", 8),
    ],
)
def test_names(text, name, chips):
    result = topology.parse(text)
    assert (result.name, result.chips, result.chip) == (name, chips, CHIPS[name.partition(":")[0]])
    assert result.tpu == name.startswith("v")


@pytest.mark.parametrize("text", ["v9:2x2", "v5e", "v5e:2x2x2", "v5e-3", "h100:2x4", "h100:0", "v5p:4x4", "v5e:0x4"])
def test_a_name_that_is_none_is_refused_with_those_there_are(text):
    with pytest.raises(ValueError, match=r"--topology=") as error:
        topology.parse(text)
    if not text.startswith("h100"):
        assert "v5e:4x8" in str(error.value) and "h100:8" in str(error.value)


def test_fake_devices_and_too_few_of_them():
    assert len(topology.devices(topology.parse("h100:8"))) == 8
    assert len(topology.devices(topology.parse("v5e:2x4"), fake=True)) == 8
    with pytest.raises(ValueError, match="needs 16 devices.*here are 8.*device_count=16"):
        topology.devices(topology.parse("a100:16"))


def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ModuleNotFoundError, match="pip install libtpu"):
        topology.devices(topology.parse("v5e:2x4"))
