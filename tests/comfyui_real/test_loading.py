"""Files of every format and family in real ComfyUI: loaded by its loader, run by its sampler, with LoRAs."""

import pytest
import torch
from format_cases import WRITTEN
from safetensors.torch import load_file, save_file

from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.formats import FORMATS
from convert_to_quant.quantization import convert_to_int8
from folding import measured

FAMILIES = ("flux", "flux2", "hunyuan_video", "ltxv", "sd3", "wan")
SMOOTH = "smooth rotated"
FOLDED = "row, folded"
FORMATS_TRIED = {c.id: c.options for c in WRITTEN if "tensor r" not in c.id} | {SMOOTH: None}
STOCK = [k for k, o in FORMATS_TRIED.items() if o is not None and "block" not in k]
PACK_ONLY = {"block 32": "int8_blockwise", SMOOTH: "int8_smooth"}

FLOOR_DB = {"row": 25, "tensor": 12, "block": 20, "float8_e4m3fn": 20, "float8_e5m2": 15, "w6a8": 15}
"""Far above noise (0 dB), below what was seen; a lost scale or rotation is noise."""


def floor(kind: str) -> float:
    return next((db for name, db in FLOOR_DB.items() if kind.startswith(name)), 8)


@pytest.fixture(scope="session")
def converted(tiny, tmp_path_factory):
    """A function that gives the file of a family in a format, made once."""
    folder, made = tmp_path_factory.mktemp("converted"), {}

    def of(family: str, kind: str):
        if (family, kind) not in made:
            target = folder / f"{family}-{kind}.safetensors"
            if kind in (SMOOTH, FOLDED):
                inputs = measured(tiny(family), folder / f"{family}-inputs.safetensors")
                how = {"smoothquant": True} if kind == SMOOTH else {"fold": "auto"}
                options = {**how, "calibration_data": str(inputs), "simple": True}
            else:
                options = FORMATS_TRIED[kind]
            convert_to_int8(str(tiny(family)), str(target), **options)
            made[family, kind] = target
        return made[family, kind]

    return of


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("family", FAMILIES)
def test_stock_comfyui_reads_them(stock, tiny, converted, family, kind):
    found = stock.call(
        "loading", "quality", original=tiny(family), quantized=converted(family, kind), family=family
    )
    assert floor(kind) < found < 100


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_comfyui_computes_with_folded_files_what_it_did(stock, tiny, converted, family):
    """A reader or a producer that a fold misses in ComfyUI's own forward passes is noise."""
    path = converted(family, FOLDED)
    assert inspect_file(path).folded
    found = stock.call("loading", "quality", original=tiny(family), quantized=path, family=family)
    assert floor(FOLDED) < found < 100


@pytest.mark.parametrize("kind", PACK_ONLY)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_pack_reads_its_own(packed, tiny, converted, family, kind):
    found = packed.call(
        "loading", "quality", original=tiny(family), quantized=converted(family, kind), family=family
    )
    assert floor(kind) < found < 100


@pytest.mark.parametrize("kind", PACK_ONLY)
def test_without_the_pack_they_are_refused(stock, tiny, converted, kind):
    """By name, and not shown as noise."""
    with pytest.raises(RuntimeError, match=f"KeyError: '{PACK_ONLY[kind]}'"):
        stock.call(
            "loading", "quality", original=tiny("flux"), quantized=converted("flux", kind), family="flux"
        )


def test_the_pack_reads_the_old_spelling_of_smoothed_files(packed, tiny, converted, tmp_path):
    state = load_file(converted("flux", SMOOTH))
    for name, tensor in state.items():
        if name.endswith(".comfy_quant"):
            old = bytes(tensor.tolist()).replace(b"int8_smooth", b"int8_tensorwise")
            state[name] = torch.tensor(list(old), dtype=torch.uint8)
    save_file(state, tmp_path / "old.safetensors")
    found = packed.call(
        "loading", "quality", original=tiny("flux"), quantized=tmp_path / "old.safetensors", family="flux"
    )
    assert found > floor(SMOOTH)


ROTATED = "row rotated by 64"


@pytest.mark.parametrize("offloaded", [False, True], ids=["resident", "offloaded"])
@pytest.mark.parametrize(
    ("family", "kind"), [*((f, ROTATED) for f in FAMILIES), *(("flux", k) for k in PACK_ONLY)]
)
def test_with_a_lora_and_offloaded(packed, tiny, converted, tmp_path, family, kind, offloaded):
    """A LoRA gives what it gives on the float model, baked in or added as weights are used."""
    lora = tiny(family).with_name(f"{family}-lora.safetensors")
    if not lora.exists():
        assert packed.call("families", "lora", path=tiny(family), target=lora)
    files = {"original": tiny(family), "quantized": converted(family, kind), "family": family}
    plain = packed.call("loading", "quality", **files, offloaded=offloaded)
    patched = packed.call("loading", "quality", **files, lora=lora, offloaded=offloaded)
    assert floor(kind) < plain
    assert patched > plain - 6


def test_every_format_that_stock_reads_is_tried():
    tried = {c.form.name for c in WRITTEN if c.id in STOCK}
    written = {f.name for f in FORMATS.values() if f.option and f.stock_since}
    assert written <= tried
