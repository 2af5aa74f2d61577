"""How leniently a layer is read: one row per spelling, the same through every door.

Two readers once disagreed about these. docs/formats.md says the same in words.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from format_cases import Shapes, infos, made
from models import save
from torch import nn

from convert_to_quant.comfy.quant_ops import mixed_precision_ops
from convert_to_quant.converter.stored.faults import examine_file
from convert_to_quant.converter.stored.layers import stored_file
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats import (
    CheckpointError,
    Float8E4M3,
    Format,
    Int8Blockwise,
    Int8Smooth,
    Int8Tensorwise,
    read_format,
)
from convert_to_quant.formats.config import decode_config
from convert_to_quant.runtime import load_quantized

ROW, WHOLE = Int8Tensorwise(), Int8Tensorwise(granularity="tensor")
TENSORWISE, BLOCKWISE, E4M3 = "int8_tensorwise", "int8_blockwise", "float8_e4m3fn"
N, K = 6, 512
BLOCKS_OF_128 = {"weight": ("I8", (130, 260)), "weight_scale": ("F32", (2, 3))}
BLOCKS_OF_64 = {"weight": ("I8", (130, 260)), "weight_scale": ("F32", (3, 5))}
ROTATED = {64: replace(ROW, rotation=64), 256: replace(ROW, rotation=256)}


@dataclass(frozen=True)
class Row:
    """A layer as some file has it, and what is right: a format, or a word of the refusal."""

    id: str
    config: Any
    tensors: Shapes
    right: Format | str

    def __str__(self) -> str:
        return self.id

    @property
    def raw(self) -> bytes:
        """The bytes of its ``comfy_quant``."""
        return self.config if isinstance(self.config, bytes) else json.dumps(self.config).encode()


def rows(scale: Any = (N, 1), dtype: str = "F32", k: int = K, **beside: Any) -> Shapes:
    """A layer of integers [N, k]; scale: the shape of ``weight_scale``, None for none."""
    found: Shapes = {"weight": ("I8", (N, k))}
    if scale is not None:
        found["weight_scale"] = (dtype, scale)
    return {**found, **{s: ("F32", shape) for s, shape in beside.items()}}


def fp8(scale: Any, dtype: str = "F32", weight: str = "F8_E4M3") -> Shapes:
    """A layer of FP8 [N, K]."""
    return {**rows(scale, dtype), "weight": (weight, (N, K))}


def scales(name: str, shape: Any, right: Format | str, dtype: str = "F32") -> Row:
    """A spelling of the scale."""
    return Row(f"tensorwise, scale {name}", {"format": TENSORWISE}, rows(shape, dtype), right)


def rotation(name: str, right: Format | str, k: int = K, **keys: Any) -> Row:
    """A spelling of the rotation."""
    return Row(f"tensorwise, {name}", {"format": TENSORWISE, **keys}, rows(k=k), right)


def block(name: str, right: Format | str, tensors: Shapes = BLOCKS_OF_128, **keys: Any) -> Row:
    """A spelling of the edge of a block."""
    return Row(f"blockwise, {name}", {"format": BLOCKWISE, **keys}, tensors, right)


def float8(name: str, shape: Any, right: Format | str, dtype: str = "F32") -> Row:
    """A spelling of the scale of FP8."""
    return Row(f"FP8, scale {name}", {"format": E4M3}, fp8(shape, dtype), right)


def raw(name: str, config: Any, right: Format | str) -> Row:
    """A spelling of the JSON itself."""
    return Row(f"comfy_quant {name}", config, rows(), right)


B128, B64, SCALED = Int8Blockwise(), Int8Blockwise(block_size=64), Float8E4M3()

SCALES = (
    scales("[N, 1]", (N, 1), ROW),
    scales("[N]", (N,), ROW),
    scales("[1, N]", (1, N), ROW),
    scales("[1, 1]", (1, 1), WHOLE),
    scales("[1]", (1,), WHOLE),
    scales("[]", (), WHOLE),
    scales("of float64", (N, 1), ROW, "F64"),
    scales("of float16", (N, 1), ROW, "F16"),
    scales("of bfloat16", (1, 1), WHOLE, "BF16"),
    scales("of integers", (N, 1), "I32", "I32"),
    scales("[N / 2, 2]", (N // 2, 2), "weight_scale"),
    scales("[N - 1, 1]", (N - 1, 1), "weight_scale"),
    scales("[1, K]", (1, K), "weight_scale"),
    scales("missing", None, "weight_scale"),
)

ROTATIONS = (
    rotation("convrot and its group", ROTATED[64], convrot=True, convrot_groupsize=64),
    rotation("convrot without a group is 256", ROTATED[256], convrot=True),
    rotation("convrot without a group, 256 does not divide K", "does not divide", 192, convrot=True),
    rotation("a group that does not divide K", "does not divide", 96, convrot=True, convrot_groupsize=64),
    rotation("the group as text", ROTATED[64], convrot=True, convrot_groupsize="64"),
    rotation("a group with a point", "convrot_groupsize", convrot=True, convrot_groupsize=64.0),
    rotation("a group that is true", "convrot_groupsize", convrot=True, convrot_groupsize=True),
    rotation("a group of 0", "convrot_groupsize", convrot=True, convrot_groupsize=0),
    rotation("a group of null", "convrot_groupsize", convrot=True, convrot_groupsize=None),
    rotation("a negative group", "convrot_groupsize", convrot=True, convrot_groupsize=-64),
    rotation("a group that is no power of four", "convrot_groupsize", convrot=True, convrot_groupsize=128),
    rotation("a group that is a list", "convrot_groupsize", convrot=True, convrot_groupsize=[64]),
    rotation("a group without convrot", ROW, convrot_groupsize=64),
    rotation("convrot false with a group", ROW, convrot=False, convrot_groupsize=64),
    rotation("convrot null", ROW, convrot=None),
    rotation("convrot 1", ROTATED[256], convrot=1),
    rotation("keys in params", ROTATED[64], params={"convrot": True, "convrot_groupsize": 64}),
    rotation("keys in params and beside", ROW, convrot=False, params={"convrot": True}),
    rotation("params a list", ROW, params=["convrot"]),
    rotation("params null", ROW, params=None),
    rotation(
        "float products", replace(ROW, full_precision_matrix_mult=True), full_precision_matrix_mult=True
    ),
    rotation("an unknown key", ROW, made_by={"tool": 1}),
)

BLOCKS = (
    block("group_size", B128, group_size=128),
    block("no size, the scale agrees with 128", B128),
    block("no size, the scale does not", "weight_scale", BLOCKS_OF_64),
    block("group_size null", B128, group_size=None),
    block("a size the scale contradicts", "weight_scale", BLOCKS_OF_64, group_size=128),
    block("block_size as the key", B64, BLOCKS_OF_64, block_size=64),
    block("both keys: group_size", B64, BLOCKS_OF_64, group_size=64, block_size=128),
    block("the size as text", B64, BLOCKS_OF_64, group_size="64"),
    block("the size in params", B64, BLOCKS_OF_64, params={"group_size": 64}),
    block("a size with a point", "group_size", group_size=128.0),
    block("a size that is true", "group_size", group_size=True),
    block("a size that is false", "group_size", group_size=False),
    block("a size of 0", "group_size", group_size=0),
    block("a negative size", "group_size", group_size=-128),
    block("a size that is no power of two", "group_size", group_size=96),
    block("a size beyond reason", "group_size", group_size=2**70),
    block("a size that is a list", "group_size", group_size=[128]),
    block("convrot", "convrot", group_size=128, convrot=True),
    block("one block with its scale []", "weight_scale", rows(()), group_size=1024),
)

FLOATS = (
    float8("[]", (), SCALED),
    float8("[1]", (1,), SCALED),
    float8("[1, 1]", (1, 1), SCALED),
    float8("missing", None, Float8E4M3(scaled=False)),
    float8("[N, 1]", (N, 1), Float8E4M3(row_scales=True)),
    float8("[N]", (N,), Float8E4M3(row_scales=True)),
    float8("[1, N]", (1, N), Float8E4M3(row_scales=True)),
    float8("of float64", (), SCALED, "F64"),
    float8("of integers", (), "I32", "I32"),
    float8("[N / 2, 2]", (N // 2, 2), "weight_scale"),
    Row("FP8 labelled as the other", {"format": E4M3}, fp8((), weight="F8_E5M2"), "F8_E5M2"),
    Row("FP8, convrot", {"format": E4M3, "convrot": True}, fp8(()), "convrot"),
)

SMOOTH = Int8Smooth()
STATIC = replace(ROW, extra=("input_scale",))

BESIDE = (
    Row("input_scale []", {"format": TENSORWISE}, rows(input_scale=()), STATIC),
    Row("input_scale [1, 1]", {"format": TENSORWISE}, rows(input_scale=(1, 1)), STATIC),
    Row("input_scale [K]", {"format": TENSORWISE}, rows(input_scale=(K,)), "input_scale"),
    Row("pre_quant_scale [K]", {"format": TENSORWISE}, rows(pre_quant_scale=(K,)), SMOOTH),
    Row("pre_quant_scale [1, K]", {"format": TENSORWISE}, rows(pre_quant_scale=(1, K)), SMOOTH),
    Row("pre_quant_scale [N]", {"format": TENSORWISE}, rows(pre_quant_scale=(N,)), "pre_quant_scale"),
    Row("weight of bytes", {"format": TENSORWISE}, {**rows(), "weight": ("U8", (N, K))}, "U8"),
    Row("weight of floats", {"format": TENSORWISE}, {**rows(), "weight": ("F32", (N, K))}, "F32"),
)

TEXTS = (
    raw("of an unknown format", {"format": "int4_someday"}, "int4_someday"),
    raw("of a format in capitals", {"format": "INT8_TENSORWISE"}, "INT8_TENSORWISE"),
    raw("with a list as the format", {"format": [TENSORWISE]}, "names no format"),
    raw("without a format", {"convrot": True}, "names no format"),
    raw("with the format in params", {"params": {"format": TENSORWISE}}, "names no format"),
    raw("of a list", [TENSORWISE], "names no format"),
    raw("of null", None, "names no format"),
    raw("without anything", b"", "not valid JSON"),
    raw("padded with NUL", json.dumps({"format": TENSORWISE}).encode() + b"\0\0", "not valid JSON"),
    raw("padded with blanks", json.dumps({"format": TENSORWISE}).encode() + b" \n", ROW),
    raw("of other bytes", b"\xff\xfe\x00", "not valid JSON"),
    raw("of a million brackets", b"[" * 10**6, "not valid JSON"),
)

TABLE = (*SCALES, *ROTATIONS, *BLOCKS, *FLOATS, *BESIDE, *TEXTS)

REMEDIED = {
    "blockwise, a size the scale contradicts",
    "blockwise, no size, the scale does not",
    "FP8 labelled as the other",
    "comfy_quant padded with NUL",
}
"""What loading refuses and verification can read all the same, with a fault and its remedy."""

every = pytest.mark.parametrize("row", TABLE, ids=str)


def tensors(row: Row) -> dict[str, torch.Tensor]:
    """A layer with random contents."""
    found = {s: made(*what, i) for i, (s, what) in enumerate(row.tensors.items())}
    return {**found, "comfy_quant": torch.tensor(list(row.raw), dtype=torch.uint8)}


def by_format(row: Row) -> Format:
    """How convert and verify read a layer."""
    return read_format(decode_config(row.raw, "fc.comfy_quant"), infos(row.tensors), "fc")


def by_loading(row: Row, folder) -> nn.Linear:
    """How `load_quantized` does."""
    n, k = row.tensors["weight"][1]
    model = nn.Module()
    model.fc = nn.Linear(k, n, bias=False)
    path = save(folder / "m.safetensors", {f"fc.{s}": t for s, t in tensors(row).items()})
    load_quantized(model, path, dtype=torch.float32)
    return model.fc


def by_factory(row: Row) -> nn.Linear:
    """How `mixed_precision_ops` does."""
    n, k = row.tensors["weight"][1]
    linear = mixed_precision_ops({}, torch.float32).Linear(k, n, bias=False, device="meta")
    linear.load_state_dict(tensors(row))
    return linear


def test_the_rows_have_names_of_their_own():
    assert len({r.id for r in TABLE}) == len(TABLE)
    assert {r.id for r in TABLE} >= REMEDIED


@every
def test_converter_and_verification(row):
    if isinstance(row.right, str):
        with pytest.raises(CheckpointError, match=row.right) as e:
            by_format(row)
        assert "fc" in str(e.value)
    else:
        assert by_format(row) == row.right


@every
def test_loading_a_model(row, tmp_path):
    if isinstance(row.right, str):
        with pytest.raises(CheckpointError, match=row.right) as e:
            by_loading(row, tmp_path)
        assert "fc" in str(e.value)
    else:
        assert dense(by_loading(row, tmp_path)).shape == row.tensors["weight"][1]


@every
def test_the_factory_of_operations(row, tmp_path):
    if isinstance(row.right, str):
        with pytest.raises(RuntimeError, match=row.right):
            by_factory(row)
    else:
        linear = by_factory(row)
        assert linear.quant_format == row.right.name
        assert torch.equal(dense(linear), dense(by_loading(row, tmp_path)))
        if "I8" in row.tensors["weight"]:
            written = json.loads(bytes(linear.state_dict()["comfy_quant"].tolist()))
            assert written == row.right.config()


@every
def test_verification_reads_the_same_or_names_a_fault(row, tmp_path):
    path = save(tmp_path / "m.safetensors", {f"fc.{s}": t for s, t in tensors(row).items()})
    with open_checkpoint(path) as checkpoint:
        examined, problems = examine_file(stored_file(checkpoint))
    if row.id == "weight of floats":  # no quantized layer at all
        assert not examined
        return
    found = examined["fc"].format
    if isinstance(row.right, str):
        assert any(p.fatal for p in problems)
        assert found is None or any(p.fatal and p.fix for p in problems)
        assert found is not None or row.id not in REMEDIED
    else:
        assert found == row.right


def dense(linear: nn.Linear) -> torch.Tensor:
    """The float weight of a linear."""
    weight = linear.weight
    return weight.dequantize() if hasattr(weight, "_qdata") else weight.detach()
