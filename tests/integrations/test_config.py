"""What a person asks for, and what becomes of it in config.json."""

import json

import pytest

from convert_to_quant.formats import ConversionError
from convert_to_quant.integrations.config import CtqConfig


def test_a_config_is_what_its_json_says():
    """All but the calibration, which is a file of this machine."""
    config = CtqConfig(
        "int8_blockwise", block_size=64, preset="flux1", skip="a.*", include=["b"], calibration="c"
    )
    told = json.loads(config.to_json_string())
    assert told["quant_method"] == "ctq"
    assert "calibration" not in told
    again = CtqConfig.from_dict(told)
    assert again.skip == ["a.*"]
    again.calibration = "c"
    assert again == config
    assert dict(config) == told
    assert config.quant_method.value == config.quant_method == "ctq"


def test_libraries_set_fields_of_it():
    config, unused = CtqConfig.from_dict({"format": "int8"}, return_unused_kwargs=True, rotation=64, other=1)
    assert config.rotation == 64
    assert unused == {"other": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "int9"}, "there is no format 'int9'"),
        ({"format": "int8_tensorwise", "scaling_mode": "block"}, "for block use int8_blockwise"),
        ({"quant_method": "gptq"}, "reads quant_method 'ctq', not 'gptq'"),
        ({"colour": "red"}, "colour.*saved by a newer convert_to_quant"),
    ],
)
def test_what_it_cannot_be_is_refused(given, message):
    with pytest.raises(ConversionError, match=message):
        CtqConfig.from_dict(given)
