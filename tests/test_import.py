"""Importing: fast, silent, touching no device; and the documented import paths."""

import subprocess
import sys

import pytest

QUIET = """
import sys
{imports}
print(*[m for m in {modules} if m in sys.modules])
"""


def loaded(imports: str, *modules: str) -> str:
    """Run `imports` in a fresh interpreter; what it printed, with those of `modules` that it loaded."""
    code = QUIET.format(imports=imports, modules=modules)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_package_alone_loads_nothing_heavy():
    assert (
        loaded("import convert_to_quant", "torch", "numpy", "safetensors", "triton", "rich", "logging") == ""
    )


def test_listing_its_names_loads_nothing_either():
    assert (
        loaded("import convert_to_quant; dir(convert_to_quant); convert_to_quant.__version__", "torch") == ""
    )


EVERYTHING = """
import os, torch

class Watched(type(os.environ)):
    def __getitem__(self, key):
        # torch may read what it likes; code of ours must not be the one that asks.
        readers = [sys._getframe(n).f_globals.get("__name__", "") for n in (1, 2)]
        assert not any(r.startswith("convert_to_quant") for r in readers), (key, readers)
        return super().__getitem__(key)

os.environ.__class__ = Watched
import convert_to_quant.kernels
import convert_to_quant.quant
import convert_to_quant.comfy.quant_ops
from convert_to_quant import QuantizedTensor, QuantizedLayout, register_layout_op
from convert_to_quant.quantization import convert_to_int8
assert not torch.cuda.is_initialized()
"""


def test_importing_prints_nothing_reads_no_environment_and_starts_neither_triton_nor_a_device():
    """One interpreter for all of it: loading torch takes seconds."""
    assert loaded(EVERYTHING, "triton", "comfy_kitchen") == ""


@pytest.mark.parametrize(
    "names",
    [
        "QuantizedTensor, QuantizedLayout, register_layout_op",
        "register_generic_util, LAYOUTS, QUANT_ALGOS",
        "BlockWiseINT8Layout, TensorWiseINT8Layout, AxisWiseINT8Layout",
    ],
)
def test_documented_names_of_quant_ops(names):
    namespace: dict = {}
    exec(f"from convert_to_quant.comfy.quant_ops import {names}", namespace)
    assert all(name in namespace for name in names.split(", "))


@pytest.mark.parametrize(
    "names",
    [
        "empty_weights, load_quantized, quantize_model, save_quantized",
        "LayerStats, QuantizeOptions",
        "Int8Linear, KeyMap, apply_lora",
    ],
)
def test_documented_names_of_runtime(names):
    namespace: dict = {}
    exec(f"from convert_to_quant.runtime import {names}", namespace)
    assert all(name in namespace for name in names.split(", "))


def test_documented_name_of_quantization():
    from convert_to_quant.quantization import convert_to_int8

    assert callable(convert_to_int8)


def test_short_names_are_the_same_objects():
    import convert_to_quant
    from convert_to_quant import quantization
    from convert_to_quant.comfy import quant_ops

    assert convert_to_quant.QuantizedTensor is quant_ops.QuantizedTensor
    assert convert_to_quant.convert_to_int8 is quantization.convert_to_int8
    assert {"QuantizedTensor", "convert_to_int8"} <= set(dir(convert_to_quant))
    with pytest.raises(AttributeError, match="no attribute 'convert_to_fp4'"):
        convert_to_quant.convert_to_fp4  # noqa: B018


def test_every_op_has_a_docstring_and_an_eager_twin_for_every_device():
    import torch

    from convert_to_quant import kernels

    functions = [f for f in kernels.__all__ if hasattr(torch.ops.convert_to_quant, f)]
    assert len(functions) >= 10
    for name in functions:
        assert getattr(kernels, name).__doc__, name
        key = "CompositeExplicitAutograd"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"convert_to_quant::{name}", key), name


def test_everything_the_front_page_offers_is_there():
    import convert_to_quant

    for name in convert_to_quant.__all__:
        assert getattr(convert_to_quant, name) is not None
