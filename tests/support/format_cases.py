"""Every storage format, as the documents describe it: what the tests of all formats are made from.

A new format is one row of `CASES`. The rows are written by hand and their decoders know numpy only: nothing
here is computed by the code under test.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracle
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from convert_to_quant.formats import (
    MXFP8,
    NVFP4,
    AsymW4A8Int8,
    ConvRotW4A4,
    Float8E4M3,
    Float8E5M2,
    Format,
    Int8Blockwise,
    Int8Smooth,
    Int8Tensorwise,
    StoredTensor,
    Tensors,
)

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Safetensors dtype and shape of each tensor of a layer, by suffix."""

Arrays = Mapping[str, np.ndarray]
"""The tensors of a layer by suffix; FP8 as its bytes."""

DTYPES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""What a tensor of a damaged file may be stored in."""


@dataclass(frozen=True)
class Case:
    """One format, with the choices that a layer has in it.

    config: its ``comfy_quant``. tensors: of a weight [N, K]. decode: the float64 weight [N, K] of stored
    tensors and their ``comfy_quant``. options: of a conversion that writes it, None where it is only read.
    columns: K is a multiple of it. least_db: weight SQNR of Gaussian weights. optional: tensors without
    which the layer means something else, and can be read. readable: further dtypes that a tensor may have.
    fields: further choices, for formats that are read back. shapes: of the layers of a small model.
    """

    id: str
    form: Format
    config: dict[str, Any]
    tensors: Callable[[int, int], Shapes]
    decode: Callable[[Arrays, dict[str, Any]], np.ndarray]
    options: dict[str, Any] | None = None
    columns: int = 1
    least_db: float = 25
    readable: dict[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    fields: dict[str, st.SearchStrategy] = field(default_factory=dict)
    shapes: tuple[tuple[int, int], ...] = ((131, 192), (130, 128))

    def __str__(self) -> str:
        return self.id

    @property
    def rotation(self) -> int:
        """The ConvRot group that its JSON names."""
        return self.config.get("convrot_groupsize", 0)


def int8(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
    """q x scale with one scale in all, per row or per block; un-rotated; x pre_quant_scale per column."""
    q, scale = tensors["weight"].astype(np.float64), tensors["weight_scale"].astype(np.float64)
    edge = config.get("group_size", 1)
    rotated = q * oracle.spread(scale, q.shape, edge, edge)
    return oracle.rotate(rotated, config["convrot_groupsize"] if config.get("convrot") else 0) * _smooth(
        tensors
    )


def float8(exponent: int) -> Callable[[Arrays, dict[str, Any]], np.ndarray]:
    """A decoder of eight bits (sign, `exponent` bits, mantissa) times the scale, where there is one."""

    def decode(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
        bits, mantissa = tensors["weight"].astype(np.int64), 7 - exponent
        bias, power = (1 << (exponent - 1)) - 1, bits >> mantissa & (1 << exponent) - 1
        part = (bits & (1 << mantissa) - 1) / (1 << mantissa)
        size = np.where(power == 0, part * 2.0 ** (1 - bias), (1 + part) * 2.0 ** (power - bias))
        values = np.where(bits & 128, -size, size)
        scale = tensors.get("weight_scale", np.ones(())).astype(np.float64)
        return values * (scale if scale.size == 1 else scale.reshape(-1, 1)) * _smooth(tensors)

    return decode


def w4a8(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
    """round(level x group scale) x row scale, un-rotated; the level by 4 or 6 bits, as the row's width
    tells."""
    raw, group = tensors["weight"].view(np.uint8).astype(np.int64), config["group_size"]
    scale = _e4m3(tensors["weight_s_rel"])
    k = scale.shape[1] * group
    codes = np.stack([raw[:, : k // 2] & 15, raw[:, : k // 2] >> 4], 2).reshape(len(raw), k)
    if raw.shape[1] > k // 2:
        top = np.stack([raw[:, k // 2 :] >> shift & 3 for shift in (0, 2, 4, 6)], 2).reshape(len(raw), k)
        level = (codes + 16 * top - 32).astype(np.float32)
    else:
        level = tensors["weight_codebook"][codes]
    product = level * np.repeat(scale, group, 1).astype(np.float32)
    integers = np.clip(np.round(product), -127, 127).astype(np.float64)
    rotated = integers * tensors["weight_s_channel"].astype(np.float64)[:, None]
    return oracle.rotate(rotated, config["convrot_groupsize"]) * _smooth(tensors)


def int4(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
    """Two's complement nibbles, the even column in the low one, x the row's scale, un-rotated."""
    raw = tensors["weight"].view(np.uint8).astype(np.int64)
    codes = np.stack([raw & 15, raw >> 4], 2).reshape(len(raw), -1)
    rotated = (codes - 16 * (codes > 7)) * tensors["weight_scale"].astype(np.float64).reshape(-1, 1)
    return oracle.rotate(rotated, config["convrot_groupsize"]) * _smooth(tensors)


def mxfp8(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
    """FP8 x 2^(scale - 127), one per 32 columns; a scale of 0 is none."""
    n, k = tensors["weight"].shape
    raw = _untiled(tensors["weight_scale"], n, k // 32).astype(np.int64)
    powers = np.where(raw == 0, 0.0, 2.0 ** (raw - 127))
    return float8(4)({"weight": tensors["weight"]}, {}) * np.repeat(powers, 32, 1) * _smooth(tensors)


def nvfp4(tensors: Arrays, config: dict[str, Any]) -> np.ndarray:
    """e2m1 halves, the even column in the high one, x the block's scale x the scale in all."""
    raw = tensors["weight"].astype(np.int64)
    n, k = raw.shape[0], 2 * raw.shape[1]
    bits = np.stack([raw >> 4, raw & 15], 2).reshape(n, k)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[bits & 7] * np.where(bits & 8, -1, 1)
    blocks = _e4m3(_untiled(tensors["weight_scale"], n, k // 16))
    scale = blocks * tensors["weight_scale_2"].astype(np.float64)
    return values * np.repeat(scale, 16, 1) * _smooth(tensors)


def _untiled(raw: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bytes of scales from cuBLAS' order, one at a time: row r of a tile at 16 (r % 32) + 4 (r // 32)."""
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    tile = r // 128 * (raw.shape[1] // 4) + c // 4
    return raw.reshape(-1)[512 * tile + 16 * (r % 32) + 4 * (r % 128 // 32) + c % 4]


def _e4m3(raw: np.ndarray) -> np.ndarray:
    return float8(4)({"weight": raw}, {})


def _smooth(tensors: Arrays) -> np.ndarray:
    return tensors.get("pre_quant_scale", np.ones(())).astype(np.float64)


def _rows(n: int, k: int) -> Shapes:
    return {"weight": ("I8", (n, k)), "weight_scale": ("F32", (n, 1))}


def _smoothed(n: int, k: int) -> Shapes:
    return {**_rows(n, k), "pre_quant_scale": ("F32", (k,))}


def _whole(n: int, k: int) -> Shapes:
    return {"weight": ("I8", (n, k)), "weight_scale": ("F32", (1, 1))}


def _blocks(edge: int) -> Callable[[int, int], Shapes]:
    return lambda n, k: {
        "weight": ("I8", (n, k)),
        "weight_scale": ("F32", (-(-n // edge), -(-k // edge))),
    }


def _float8(dtype: str, scaled: bool) -> Callable[[int, int], Shapes]:
    scale: Shapes = {"weight_scale": ("F32", ())} if scaled else {}
    return lambda n, k: {"weight": (dtype, (n, k)), **scale}


def _rotated(group: int) -> dict[str, Any]:
    return {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}


def _packed(bits: int) -> Callable[[int, int], Shapes]:
    def tensors(n: int, k: int) -> Shapes:
        own: Shapes = {"weight": ("I8", (n, k * bits // 8)), "weight_s_rel": ("F8_E4M3", (n, k // 16))}
        table: Shapes = {"weight_codebook": ("F32", (16,))} if bits == 4 else {}
        return {**own, "weight_s_channel": ("F32", (n,)), **table}

    return tensors


def _tiles(block: int) -> Callable[[int, int], tuple[int, int]]:
    return lambda n, k: (-(-n // 128) * 128, -(-(k // block) // 4) * 4)


_W4A8 = {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 16}

_TENSORWISE = {
    "granularity": st.sampled_from(["row", "tensor"]),
    "rotation": st.sampled_from([0, 4, 16, 64]),
}
_EDGES = {"block_size": st.sampled_from([1, 2, 8, 32, 128, 1024])}
_SCALED = {"scaled": st.booleans()}

CASES = (
    Case(
        "row",
        Int8Tensorwise(),
        {"format": "int8_tensorwise"},
        _rows,
        int8,
        {"scaling_mode": "row", "convrot": False},
        fields=_TENSORWISE,
    ),
    Case(
        "row rotated by 64",
        Int8Tensorwise(rotation=64),
        _rotated(64),
        _rows,
        int8,
        {"scaling_mode": "row", "convrot_group_size": 64},
        columns=64,
    ),
    Case(
        "tensor",
        Int8Tensorwise(granularity="tensor"),
        {"format": "int8_tensorwise"},
        _whole,
        int8,
        {"scaling_mode": "tensor", "convrot": False},
    ),
    Case(
        "tensor rotated by 16",
        Int8Tensorwise(granularity="tensor", rotation=16),
        _rotated(16),
        _whole,
        int8,
        {"scaling_mode": "tensor", "convrot_group_size": 16},
        columns=16,
    ),
    Case(
        "block 32",
        Int8Blockwise(block_size=32),
        {"format": "int8_blockwise", "group_size": 32},
        _blocks(32),
        int8,
        {"scaling_mode": "block", "block_size": 32},
        fields=_EDGES,
        shapes=((131, 190), (130, 128)),
    ),
    Case(
        "smooth rotated by 16",
        Int8Smooth(rotation=16),
        {**_rotated(16), "format": "int8_smooth"},
        _smoothed,
        int8,
        columns=16,
        fields=_TENSORWISE,
    ),
    Case(
        "float8_e4m3fn",
        Float8E4M3(),
        {"format": "float8_e4m3fn"},
        _float8("F8_E4M3", True),
        float8(4),
        {"format": "fp8"},
        optional=("weight_scale",),
        fields=_SCALED,
    ),
    Case(
        "float8_e5m2",
        Float8E5M2(),
        {"format": "float8_e5m2"},
        _float8("F8_E5M2", True),
        float8(5),
        {"format": "fp8_e5m2"},
        optional=("weight_scale",),
        least_db=23,
    ),
    Case(
        "float8_e4m3fn with row scales",
        Float8E4M3(row_scales=True),
        {"format": "float8_e4m3fn"},
        lambda n, k: {"weight": ("F8_E4M3", (n, k)), "weight_scale": ("F32", (n, 1))},
        float8(4),
        optional=("weight_scale",),
        fields={"row_scales": st.booleans()},
    ),
    Case(
        "w4a8",
        AsymW4A8Int8(rotation=16),
        _W4A8,
        _packed(4),
        w4a8,
        {"format": "w4a8", "convrot_group_size": 16},
        columns=16,
        least_db=20,
        optional=("weight_codebook",),
        readable={"weight_s_rel": ("U8",)},
        fields={"bits": st.just(4), "codebook": st.booleans(), "group_size": st.sampled_from([4, 8, 16])},
    ),
    Case(
        "w6a8",
        AsymW4A8Int8(rotation=16, bits=6),
        _W4A8,
        _packed(6),
        w4a8,
        {"format": "w6a8", "convrot_group_size": 16},
        columns=32,
        least_db=31,
        readable={"weight_s_rel": ("U8",)},
    ),
    Case(
        "int4",
        ConvRotW4A4(rotation=64),
        {"format": "convrot_w4a4", "convrot_groupsize": 64, "linear_dtype": "int8"},
        lambda n, k: {"weight": ("I8", (n, k // 2)), "weight_scale": ("F32", (n,))},
        int4,
        {"format": "int4", "convrot_group_size": 64},
        columns=64,
        least_db=16,
        fields={"linear_dtype": st.sampled_from(["int4", "int8"])},
    ),
    Case(
        "mxfp8",
        MXFP8(),
        {"format": "mxfp8"},
        lambda n, k: {"weight": ("F8_E4M3", (n, k)), "weight_scale": ("F8_E8M0", _tiles(32)(n, k))},
        mxfp8,
        {"format": "mxfp8"},
        columns=32,
        readable={"weight_scale": ("U8",)},
        shapes=((160, 192), (128, 128)),
    ),
    Case(
        "nvfp4",
        NVFP4(),
        {"format": "nvfp4"},
        lambda n, k: {
            "weight": ("U8", (n, k // 2)),
            "weight_scale": ("F8_E4M3", _tiles(16)(n, k)),
            "weight_scale_2": ("F32", ()),
        },
        nvfp4,
        {"format": "nvfp4"},
        columns=16,
        least_db=18,
        readable={"weight_scale": ("U8",)},
        shapes=((144, 192), (128, 128)),
    ),
    Case(
        "float8_e4m3fn without a scale",
        Float8E4M3(scaled=False),
        {"format": "float8_e4m3fn"},
        _float8("F8_E4M3", False),
        float8(4),
    ),
)

WRITTEN = tuple(c for c in CASES if c.options is not None)
READ_ONLY = tuple(c for c in CASES if c.options is None)


def made(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor as a layer may hold it: integers over their range, positive scales, FP8 up to 4."""
    g = torch.Generator().manual_seed(seed)
    if dtype == "I8":
        return torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)
    if dtype == "U8":
        return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    if dtype == "F8_E8M0":
        return torch.randint(110, 135, shape, generator=g, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    if dtype.startswith("F8"):
        return torch.randn(shape, generator=g).clamp_(-4, 4).to(DTYPES[dtype])
    return (torch.rand(shape, generator=g) + 0.25).mul_(8).to(DTYPES[dtype])


def stored(
    case: Case, shape: tuple[int, int], seed: int = 0, extra: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a layer [N, K] with random contents, by suffix, ``comfy_quant`` aside."""
    extras: Shapes = {"input_scale": ("F32", ()), "pre_quant_scale": ("F32", (shape[1],))}
    wanted = {**case.tensors(*shape), **{s: extras[s] for s in extra}}
    return {s: made(*what, seed + i) for i, (s, what) in enumerate(wanted.items())}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit; torch.equal takes no FP8."""
    return a.dtype == b.dtype and a.shape == b.shape and bytes(as_bytes(a)) == bytes(as_bytes(b))


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy()


def described(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors as formats see them: dtypes and shapes."""
    names = {v: k for k, v in DTYPES.items()}
    return {s: StoredTensor(s, names[t.dtype], tuple(t.shape)) for s, t in tensors.items()}


def infos(shapes: Shapes) -> Tensors:
    """Dtypes and shapes as formats see them."""
    return {s: StoredTensor(s, *what) for s, what in shapes.items()}


def arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """The tensors for a decoder."""
    return {s: (t.view(torch.uint8) if "float8" in str(t.dtype) else t).numpy() for s, t in tensors.items()}


def decoded(
    case: Case, tensors: Mapping[str, torch.Tensor], config: dict[str, Any] | None = None
) -> np.ndarray:
    """The float64 weight of a layer's stored tensors."""
    return case.decode(arrays(tensors), case.config if config is None else config)


def rounding(case: Case, want: np.ndarray, smooth: np.ndarray | float = 1.0) -> np.ndarray:
    """Bound on the float32 error of a decoded weight: of its products, and of its rotation."""
    return 4 * oracle.U * np.abs(want) + smooth * oracle.rotation_error(want / smooth, case.rotation)


def json_tensor(value: Any) -> torch.Tensor:
    """A ``comfy_quant`` tensor of a JSON value."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def layer(path: Any, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors by suffix, ``comfy_quant``) of a layer in a file; {} where it has no ``comfy_quant``."""
    start = f"{name}."
    found = {n.removeprefix(start): t for n, t in load_file(path).items() if n.startswith(start)}
    raw = found.pop("comfy_quant", None)
    return found, {} if raw is None else json.loads(bytes(raw.tolist()))
