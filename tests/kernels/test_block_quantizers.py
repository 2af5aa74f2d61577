"""quantize_mxfp8 and quantize_nvfp4: every value and scale against float64, by the formats' own decoders."""

import format_cases
import numpy as np
import pytest
import torch

from convert_to_quant import kernels

E4M3 = np.array(format_cases.float8(4)({"weight": np.arange(127, dtype=np.uint8)}, {}))
LEVELS = {"mxfp8": E4M3, "nvfp4": np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])}
BLOCK = {"mxfp8": 32, "nvfp4": 16}
both = pytest.mark.parametrize("kind", BLOCK)


def quantized(kind: str, x: torch.Tensor) -> dict[str, np.ndarray]:
    """The stored tensors of x by suffix, as bytes."""
    made = getattr(kernels, f"quantize_{kind}")(x)
    names = ("weight", "weight_scale", "weight_scale_2")
    return {
        n: (t if t.element_size() > 1 else t.view(torch.uint8)).numpy()
        for n, t in zip(names, made, strict=False)
    }


def decoded(kind: str, stored: dict[str, np.ndarray]) -> np.ndarray:
    """The float64 weight."""
    return getattr(format_cases, kind)(stored, {})


def scales(kind: str, stored: dict[str, np.ndarray], n: int, k: int) -> np.ndarray:
    """The scale of each block, float64: what ones of the block would stand for."""
    one = {"mxfp8": np.full((n, k), 0x38, np.uint8), "nvfp4": np.full((n, k // 2), 0x22, np.uint8)}[kind]
    return decoded(kind, {**stored, "weight": one})[:, :: BLOCK[kind]]


def error(kind: str, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The least squared error of each block under the scales [n, blocks], by trying every level."""
    blocks, levels = np.abs(x).reshape(*scale.shape, -1), LEVELS[kind]
    away = np.abs(blocks[..., None] - levels * scale[..., None, None]).min(-1)
    return (away**2).sum(-1)


def tried(kind: str, x: np.ndarray, whole: float) -> list[np.ndarray]:
    """The scales that the search is documented to try, [n, blocks] each."""
    peak = np.abs(x).reshape(x.shape[0], -1, BLOCK[kind]).max(-1)
    if kind == "mxfp8":
        power = 2.0 ** np.maximum(np.ceil(np.log2(np.maximum(peak / 448, 2.0**-126))), -126)
        return [power, np.maximum(power / 2, 2.0**-126)]
    start = np.abs(peak[..., None] / (6 * whole) - E4M3[1:]).argmin(-1) + 1
    return [E4M3[np.clip(start + move, 1, 126)] * whole for move in (0, 1, -1, 4, 5)]


@both
def test_values_and_scales_are_the_best_that_were_tried(kind, dtype):
    x = (torch.randn(37, 7 * BLOCK[kind]) ** 3).to(dtype)
    stored, exact = quantized(kind, x), x.double().numpy()
    got = decoded(kind, stored)
    assert got.shape == exact.shape
    scale = scales(kind, stored, *x.shape)
    lost = ((got - exact) ** 2).reshape(*scale.shape, -1).sum(-1)
    assert (lost <= error(kind, exact, scale) * (1 + 1e-5)).all()  # nearest
    if kind == "nvfp4":
        assert stored["weight_scale_2"] == np.float32(np.abs(exact).max() / 2688)
    best = np.min(
        [error(kind, exact, s) for s in tried(kind, exact, float(stored.get("weight_scale_2", 1)))], 0
    )
    assert (lost <= best * (1 + 1e-5)).all()
    assert np.mean(lost) < np.mean(
        error(kind, exact, tried(kind, exact, float(stored.get("weight_scale_2", 1)))[0])
    )


@both
def test_zeros_small_and_large(kind):
    """No scale is lost at the ends of float32, and a zero is stored as 0, whatever its sign."""
    x = torch.randn(4, 2 * BLOCK[kind])
    x[0] = 0
    x[1, ::2] = -0.0
    for part in (x, x * 2.0**120, x * 2.0**-80):
        stored = quantized(kind, part)
        got = decoded(kind, stored)
        assert not got[0].any()
        assert not (stored["weight"] == 0x80).any()
        assert not np.signbit(got[got == 0]).any()
        want = part.double().numpy()[1:]
        assert ((got[1:] - want) ** 2).sum() < 0.02 * (want**2).sum()
    assert not decoded(kind, quantized(kind, torch.full((1, 64), 1e-44))).any()


def test_the_scale_in_all_may_be_given():
    x = torch.randn(5, 48)
    given = torch.tensor(0.02)
    q, _, whole = kernels.quantize_nvfp4(x, given)
    assert whole == given
    assert whole.data_ptr() != given.data_ptr()
    parts = [kernels.quantize_nvfp4(x[rows], given) for rows in (slice(0, 2), slice(2, 5))]
    assert torch.equal(torch.cat([p[0] for p in parts]), q)
    far = kernels.quantize_nvfp4(1e6 * x, torch.tensor(1e-3))  # saturates
    stored = {
        "weight": far[0].numpy(),
        "weight_scale": far[1].view(torch.uint8).numpy(),
        "weight_scale_2": far[2].numpy(),
    }
    assert np.abs(format_cases.nvfp4(stored, {})).max() == pytest.approx(448 * 6 * 1e-3)


@both
def test_nan_and_inf_show_in_the_scale_of_their_block(kind):
    x = torch.randn(3, 4 * BLOCK[kind])
    for bad in (float("nan"), float("inf")):
        x[1, BLOCK[kind] + 2] = bad
        made = getattr(kernels, f"quantize_{kind}")(x)
        if kind == "nvfp4":
            assert not made[2].isfinite()
            made = kernels.quantize_nvfp4(x, torch.tensor(0.01))
        none = made[1].view(torch.uint8).flatten() == (255 if kind == "mxfp8" else 127)
        assert none.nonzero().tolist() == [[17]]  # row 1 and block 1 of a tile


@both
@pytest.mark.parametrize("layout", ["columns", "transposed"])
def test_any_strides(kind, layout):
    base = torch.randn(2 * BLOCK[kind], 3 * BLOCK[kind])
    x = base[1::2, BLOCK[kind] :] if layout == "columns" else base.t()
    got, want = quantized(kind, x), quantized(kind, x.contiguous())
    assert all(np.array_equal(got[name], want[name]) for name in want)


@both
def test_declared_as_torch_wants(kind):
    op = getattr(torch.ops.convert_to_quant, f"quantize_{kind}").default
    for n in (3, 0):
        torch.library.opcheck(op, (torch.randn(n, 64),))
    if kind == "nvfp4":
        torch.library.opcheck(op, (torch.randn(3, 64), torch.tensor(0.1)))


@both
def test_refusals(kind):
    op = getattr(kernels, f"quantize_{kind}")
    with pytest.raises(TypeError, match="float32"):
        op(torch.zeros(4, 64, dtype=torch.int8))
    with pytest.raises(ValueError, match="2-D"):
        op(torch.zeros(64))
    with pytest.raises(ValueError, match=f"whole blocks of {BLOCK[kind]}"):
        op(torch.zeros(4, 40))
    with pytest.raises(ValueError, match="one element"):
        kernels.quantize_nvfp4(torch.zeros(4, 64), torch.ones(2))
