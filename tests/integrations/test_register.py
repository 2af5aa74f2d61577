"""Registration: in both libraries, and what is said where they are not as they were."""

import sys
from pathlib import Path

import pytest
from peers import peer

from convert_to_quant.formats import ConversionError
from convert_to_quant.integrations import register
from convert_to_quant.integrations.config import CtqConfig

diffusers, transformers = peer("diffusers"), peer("transformers")
ROOT = Path(__file__).resolve().parents[2]


def test_one_import_registers_in_both_and_another_changes_nothing():
    from diffusers.quantizers import auto as theirs
    from transformers.quantizers import auto as others

    import convert_to_quant.diffusers
    import convert_to_quant.transformers

    assert convert_to_quant.diffusers.CtqConfig is convert_to_quant.transformers.CtqConfig is CtqConfig
    assert theirs.AUTO_QUANTIZATION_CONFIG_MAPPING["ctq"] is CtqConfig
    config = others.AUTO_QUANTIZATION_CONFIG_MAPPING["ctq"]
    assert issubclass(config, CtqConfig)
    quantizers = theirs.AUTO_QUANTIZER_MAPPING["ctq"], others.AUTO_QUANTIZER_MAPPING["ctq"]
    register.register_diffusers()
    register.register_transformers()
    assert others.AUTO_QUANTIZATION_CONFIG_MAPPING["ctq"] is config
    assert (theirs.AUTO_QUANTIZER_MAPPING["ctq"], others.AUTO_QUANTIZER_MAPPING["ctq"]) == quantizers


def test_a_library_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(register.importlib.metadata, "version", lambda name: "0.9.1")
    for call in (register.register_diffusers, register.register_transformers):
        with pytest.raises(ConversionError, match=r"0\.9\.1 is too old .* or newer is needed"):
            call()


def test_a_library_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(register.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"diffusers is not installed: .*\[diffusers\]"):
        register.register_diffusers()


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        ("auto", "AUTO_QUANTIZER_MAPPING", "no tables AUTO_QUANTIZER_MAPPING"),
        ("base", "DiffusersQuantizer", "no maybe_update_loaded_keys in its quantizers"),
    ],
)
def test_what_diffusers_has_moved_is_named(monkeypatch, where, name, message):
    from diffusers import quantizers

    monkeypatch.setattr(getattr(quantizers, where), name, None)
    with pytest.raises(ConversionError, match=rf"{message}.*diffusers 0\.42\.1 had it.*load_quantized"):
        register.register_diffusers()


def test_hooks_of_transformers_are_looked_at(monkeypatch):
    from transformers.quantizers import auto

    monkeypatch.delattr(auto, "register_quantizer")
    with pytest.raises(ConversionError, match="has no register_quantizer in"):
        register.register_transformers()


def test_a_checkouts_kernels_folder_is_not_taken_for_a_package(monkeypatch, tmp_path):
    """From the root of a checkout transformers would find our folder; another package of that name it may."""
    theirs = tmp_path / "kernels" / "__init__.py"
    theirs.parent.mkdir()
    theirs.write_text("")
    for root, hidden in ((tmp_path, False), (ROOT, True)):
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
        monkeypatch.syspath_prepend(root)
        register._hide_our_kernels()
        assert ("kernels" in sys.modules) == hidden
    assert sys.modules["kernels"] is None
