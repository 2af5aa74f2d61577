"""Every kernel under Triton's interpreter, against its eager twin."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from triton_cases import CASES, same

from convert_to_quant.kernels._library import LAUNCHERS
from convert_to_quant.kernels.triton import _launch, _proof, blockwise, rotation, rowwise
from convert_to_quant.kernels.triton import float_linear as fl
from convert_to_quant.kernels.triton import int8_mm as mm
from convert_to_quant.kernels.triton import packed_linear as pl
from convert_to_quant.kernels.triton import weight_only as wo
from convert_to_quant.kernels.triton._epilogue import Epilogue, launch_finish
from convert_to_quant.kernels.triton._gemm import TileConfig
from convert_to_quant.kernels.triton._operands import argument, empty
from convert_to_quant.kernels.triton._plan import Plan
from convert_to_quant.kernels.triton._planned import planned
from convert_to_quant.kernels.triton._run import Run

PLAIN = {
    op: getattr(importlib.import_module(f"convert_to_quant.kernels.triton.{module}"), function)
    for op, target in LAUNCHERS.items()
    for module, function in [target.split(".")]
}
"""Every op that has a launcher, by name: cases for a new one need no word here."""


def twice(launcher):
    """The launcher, called a second time on copies of its arguments: the replay must give the same bits."""

    def call(*args, **kwargs):
        copies = [copy(a) for a in args]
        first = launcher(*args, **kwargs)
        again = launcher(*copies, **{k: copy(v) for k, v in kwargs.items()})
        for got, want in zip(tensors(again), tensors(first), strict=True):
            same(got, want)
        for got, want in zip(tensors(copies), tensors(args), strict=True):  # what is written in place
            assert torch.equal(got, want) or got.isnan().any()
        return first

    return call


def tensors(values) -> list[torch.Tensor]:
    return [v for v in (values if isinstance(values, (tuple, list)) else (values,)) if torch.is_tensor(v)]


def copy(value):
    if not torch.is_tensor(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)


OPS = SimpleNamespace(**{name: twice(launcher) for name, launcher in PLAIN.items()})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_eager_twin(case, place):
    case.check(OPS, place)


PRODUCTS = [c for c in CASES if c.name.startswith(("int8_mm-", "int8_mm_blockwise", "int8_linear_exact"))]


@pytest.mark.parametrize("case", PRODUCTS[::3], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["split", "descriptors", "split descriptors", "small"])
def test_other_tiles_match_eager_twin(case, kind, place, monkeypatch):
    if "descriptors" in kind and _launch.TensorDescriptor is None:
        pytest.skip("tensor descriptors came with Triton 3.4")
    config = {
        "split": TileConfig(32, 64, 64, 4, 1, split_k=3),
        "descriptors": TileConfig(64, 64, 64, 4, 1, descriptors=True),
        "split descriptors": TileConfig(64, 64, 64, 4, 1, split_k=3, descriptors=True),
        "small": TileConfig(16, 32, 32, 4, 1),
    }[kind]
    monkeypatch.setattr(mm, "INTERPRETER", (config,))
    case.check(OPS, place)


ROWWISE = [c for c in CASES if c.name.startswith(("rowwise", "blockwise", "nan_under"))]


@pytest.mark.parametrize("case", ROWWISE[::3], ids=lambda case: case.name)
def test_every_other_way_to_share_a_row_matches_eager_twin(case, place, monkeypatch):
    """The second entries of the tables, which the interpreter, without a tuner, would never take."""
    for module in (rowwise, blockwise):
        assert len(module.CONFIGS) == 2, "another entry needs another run of these cases"
        monkeypatch.setattr(module, "CONFIGS", module.CONFIGS[1:])
    case.check(OPS, place)


WIDE = ("rotate-64", "rotate-256", "rotate-1024", "nan_under")
ROTATED = [c for c in CASES if c.name.startswith(WIDE)]


@pytest.mark.parametrize("case", ROTATED, ids=lambda case: case.name)
def test_rotations_of_other_vendors_match_eager_twin(case, place, monkeypatch):
    """Their operands lie otherwise, and what float32 leaves of itself is rounded by integers."""
    for module in (rotation, rowwise):
        monkeypatch.setattr(module, "mma_fragments", lambda device: False)
    case.check(OPS, place)


PACKED = [c for c in CASES if c.name.startswith("packed_linear")]


@pytest.mark.parametrize("case", PACKED[::2], ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["split", "descriptors", "decoded"])
def test_other_engines_of_packed_weights_match_eager_twin(case, kind, place, monkeypatch):
    if kind == "descriptors" and _launch.TensorDescriptor is None:
        pytest.skip("tensor descriptors came with Triton 3.4")
    engine = {
        "split": TileConfig(32, 32, 64, 4, 1, split_k=3),
        "descriptors": TileConfig(64, 64, 128, 4, 1, descriptors=True),
        "decoded": pl.Decoded(TileConfig(64, 64, 128, 4, 1)),
    }[kind]
    monkeypatch.setattr(pl, "INTERPRETER", (engine,))
    case.check(OPS, place)


FLOATS = [c for c in CASES if c.name.startswith("float_linear") and "-5-" in c.name]


@pytest.mark.parametrize("case", FLOATS[1::2], ids=lambda case: case.name)
def test_split_tiles_of_small_floats_match_eager_twin(case, place, monkeypatch):
    monkeypatch.setattr(fl, "INTERPRETER", (wo.WeightOnlyConfig(16, 32, 64, 4, 1, split_k=3),))
    case.check(OPS, place)


@pytest.mark.parametrize("static", [False, True])
def test_fp8_product_after_our_quantizer(static, place, monkeypatch):
    """Where the device multiplies FP8: the same bits as the twin, whose activations PyTorch rounds."""
    from convert_to_quant import kernels

    monkeypatch.setattr(sys.modules[fl.multiplies_fp8.__module__], "has_fp8_product", lambda device: True)
    x, bias, given = torch.randn(20, 320).bfloat16(), torch.randn(48), torch.tensor(0.03) if static else None
    q, scale = kernels.quantize_float8(torch.randn(48, 320))
    operands = q.view(torch.uint8), "e4m3", scale, None, bias, given
    got = OPS.float_linear(place(x), *(place(v) if torch.is_tensor(v) else v for v in operands))
    same(got, kernels.float_linear(x, *operands))


WEIGHT_ONLY = [c for c in CASES if c.name.startswith("weight_only")]


@pytest.mark.parametrize("case", WEIGHT_ONLY[::3], ids=lambda case: case.name)
def test_split_weight_only_matches_eager_twin(case, place, monkeypatch):
    monkeypatch.setattr(wo, "INTERPRETER", wo.INTERPRETER[1:])
    case.check(OPS, place)


@pytest.mark.parametrize("workspace", [1 << 20, 2000], ids=["whole", "in parts"])
def test_library_product_with_our_epilogue(workspace, place, monkeypatch):
    """The `torch._int_mm` engine gives the bits of the tiles, also in parts of 20 rows."""
    monkeypatch.setattr(mm, "MAX_WORKSPACE", workspace)
    a = torch.randint(-127, 128, (40, 64), dtype=torch.int8)
    b = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    scales = torch.rand(40, 1), torch.rand(24, 1)

    @planned
    def product(engine, a, b, *scales):
        out = empty((40, 24), torch.bfloat16, a.device)
        epilogue = mm.operands(*scales, None, "silu", 40, False)
        return Plan(mm.product(engine, a, b, out, epilogue), out)

    engines = mm.IntMM(), mm.INTERPRETER[0]
    results = [product(e, place(a), place(b), *map(place, scales)) for e in engines for _ in range(2)]
    assert all(torch.equal(r, results[0]) for r in results)


def test_the_proof_of_an_engine_tells_right_from_wrong(monkeypatch):
    """What another process runs on a card (`_proof.compare`), with an engine of the interpreter."""
    cpu, shape, tile = torch.device("cpu"), (33, 48, 64), mm.INTERPRETER[0]
    assert _proof.same_bits(tile, shape, cpu)
    launch = mm.launch_product
    monkeypatch.setattr(mm, "launch_product", lambda *given: launch(*given[:4], given[4]._replace(bias=None)))
    assert not _proof.same_bits(tile, shape, cpu)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("k", [128, 120], ids=["even", "ragged"])
def test_weight_only_reads_strided_planes(k, split, place):
    """Planes, rows of activations and rows of weights that lie apart, with other numbers in between."""
    memory = torch.randint(-4, 5, (3, 7, k + 8)).bfloat16()
    weights = torch.randint(-9, 10, (40, k + 16), dtype=torch.int8)
    planes, q = memory[:, 1:6, :k], weights[::2, :k]
    x, out = memory[:, 1:6, :k].float().sum(0), torch.full((5, 20), float("nan"))
    partial = torch.full((split, 5, 20), float("nan"))
    tensors = planes, q, torch.ones(20, 1), out, partial
    p, w, s, o, sums = (argument(i, t) for i, t in enumerate(tensors))
    config, epilogue = wo.WeightOnlyConfig(16, 16, 64, 4, 1, split_k=split), Epilogue(None, s, None, None)
    steps = [wo.launch_weight_only(config, p, w, o if split == 1 else sums, epilogue)]
    if split > 1:
        steps.append(launch_finish(sums, o, epilogue))
    Run(tensors).do(steps)
    assert torch.equal(out, x @ q.float().t())


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rotation", [0, 64])
def test_weight_only_engine(rotation, split, place, monkeypatch):
    """What `int8_linear` may choose for few rows: the float product, with bias and activation after it."""
    import torch.nn.functional as F

    from convert_to_quant import kernels

    if split:
        monkeypatch.setattr(wo, "INTERPRETER", wo.INTERPRETER[1:])
    x, bias = torch.randn(6, 256).bfloat16(), torch.randn(72)
    q, scale = kernels.quantize_rowwise(torch.randn(72, 256), rotation)

    @planned
    def multiply(x, *weight):
        out = empty((6, 72), torch.bfloat16, x.device)
        return Plan(wo.multiply(x, *weight, out, "gelu_tanh"), out)

    out = multiply(place(x), place(q), place(scale), place(bias), rotation)
    weight = kernels.dequantize(q, scale, torch.float32, rotation).double()
    exact = F.gelu(F.linear(x.double(), weight, bias.double()), approximate="tanh")
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("kind", ["rows", "tensor", "blocks"])
def test_float_engine(kind, monkeypatch):
    """The engine chosen where int8 cannot win gives the float linear of the dequantized weight."""
    import torch.nn.functional as F

    from convert_to_quant import kernels
    from convert_to_quant.kernels.triton import int8_linear

    monkeypatch.setattr(int8_linear, "SLICE", 64 * 200)
    x, w, bias = torch.randn(6, 256), torch.randn(200, 256), torch.randn(200)
    rotation = 0 if kind == "blocks" else 64
    q, scale = {
        "rows": lambda: kernels.quantize_rowwise(w, 64),
        "tensor": lambda: kernels.quantize_tensorwise(w, None, 64),
        "blocks": lambda: kernels.quantize_blockwise(w, 64, 64),
    }[kind]()
    out = torch.full((6, 200), float("nan"))
    plain = None, None, None
    int8_linear._float_linear(x, q, scale, bias, rotation, out, "silu", None, 0.0, *plain)
    weight = kernels.dequantize(q, scale, torch.float32, rotation)
    torch.testing.assert_close(out, F.linear(F.silu(x), weight, bias), rtol=1e-4, atol=1e-4)

    norm, residual, by = torch.rand(256), torch.randn(6, 200), torch.rand(200)
    ends = "silu", residual, by
    int8_linear._float_linear(x, q, scale, bias, rotation, out, None, norm, 1e-5, *ends)
    want = residual + by * F.silu(F.linear(F.rms_norm(x, (256,), norm, 1e-5), weight, bias))
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
