"""quantize_int4 and quantize_decoded: codes and searched scales against float64."""

import format_cases
import numpy as np
import oracle
import pytest
import torch

from convert_to_quant import kernels
from convert_to_quant.kernels.decoded import CODEBOOK

KINDS = {"int4": 4, "w4a8": 4, "w6a8": 6}
every = pytest.mark.parametrize("kind", KINDS)
E4M3 = np.array(format_cases.float8(4)({"weight": np.arange(127, dtype=np.uint8)}, {}))


def quantize(kind: str, x: torch.Tensor, rotation: int = 0):
    """The op's result."""
    if kind == "int4":
        return kernels.quantize_int4(x, rotation)
    return kernels.quantize_decoded(x, KINDS[kind], 16, rotation)


def decoded(kind: str, made) -> np.ndarray:
    """The float64 weight in the rotated space."""
    config = {"group_size": 16, "convrot_groupsize": 0}
    if kind == "int4":
        return format_cases.int4({"weight": made[0].numpy(), "weight_scale": made[1].numpy()}, config)
    tensors = {"weight": made[0].numpy(), "weight_s_rel": made[1].view(torch.uint8).numpy()}
    tensors |= {"weight_s_channel": made[2].flatten().numpy()}
    return format_cases.w4a8({**tensors, "weight_codebook": np.array(CODEBOOK, np.float32)}, config)


def levels(kind: str, scale: np.ndarray) -> np.ndarray:
    """The integers [.., levels] that codes decode to under group scales [..]."""
    if kind == "int4":
        return np.broadcast_to(np.arange(-7.0, 8), (*scale.shape, 15))
    level = np.array(CODEBOOK, np.float32) if kind == "w4a8" else np.arange(-31, 32, dtype=np.float32)
    return np.clip(np.round(scale[..., None].astype(np.float32) * level), -127, 127).astype(np.float64)


@every
@pytest.mark.parametrize("rotation", [0, 64])
def test_every_code_is_the_nearest(kind, rotation, dtype):
    x = (torch.randn(23, 320) ** 3).to(dtype)
    made = quantize(kind, x, rotation)
    exact = oracle.rotate(x.double().numpy(), rotation)
    row = made[-1].double().numpy()
    target = (exact / row).reshape(23, -1, 16)
    group = np.ones((23, 20)) if kind == "int4" else made[1].double().numpy()
    away = np.abs(target[..., None] - levels(kind, group)[:, :, None]).min(-1)
    got = np.abs(decoded(kind, made) / row - exact / row).reshape(away.shape)
    assert (got <= away + 1e-4).all()
    assert np.abs(decoded(kind, made)).max() > 0


def test_int4_scale_loses_less_than_any_that_was_tried():
    x = torch.randn(9, 1024)
    q, scale = kernels.quantize_int4(x)
    exact, start = x.double().numpy(), x.double().abs().amax(1, keepdim=True).numpy() / 7

    def lost(s: np.ndarray) -> np.ndarray:
        return ((np.clip(np.round(exact / s), -7, 7) * s - exact) ** 2).sum(1)

    mine = lost(scale.double().numpy())
    assert np.allclose(mine, ((decoded("int4", (q, scale)) - exact) ** 2).sum(1), rtol=1e-5)
    for share in (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        assert (mine <= lost(start * share) * (1 + 1e-5)).all()
    assert (mine < 0.75 * lost(start)).all()


@pytest.mark.parametrize("kind", ["w4a8", "w6a8"])
def test_group_scales_lose_less_than_their_neighbours(kind):
    """Among the steps that are tried from the scale whose top level is the group's peak."""
    x = torch.randn(9, 320) ** 3
    made = quantize(kind, x)
    bits, top, peak, moves = {"w4a8": (4, 0.980671, 128, (0, 1, -1)), "w6a8": (6, 31, 4, (0, 1, 2))}[kind]
    row = made[2].double().numpy()
    assert np.allclose(row[:, 0], x.abs().amax(1).numpy() / (top * peak), rtol=1e-6)
    groups = (x.double().numpy() / row).reshape(9, -1, 16)
    start = np.abs(np.abs(groups).max(-1, keepdims=True) / top - E4M3[1:]).argmin(-1) + 1
    assert bits == KINDS[kind]

    def lost(scale: np.ndarray) -> np.ndarray:
        return (np.abs(groups[..., None] - levels(kind, scale)[:, :, None]).min(-1) ** 2).sum(-1)

    mine = lost(made[1].double().numpy())
    for move in moves:
        # The middle of a half step decides: a value at its edge may take the farther of two equal levels.
        assert (mine <= lost(E4M3[np.clip(start + move, 1, 126)]) * (1 + 1e-3) + 1e-3).all()


@every
def test_zeros_small_and_large(kind):
    x = torch.randn(4, 64)
    x[0] = 0
    for part in (x, x * 2.0**100, x * 2.0**-90):
        made = quantize(kind, part)
        got, want = decoded(kind, made), part.double().numpy()
        assert not got[0].any()
        assert made[-1].isfinite().all()
        assert ((got[1:] - want[1:]) ** 2).sum() < 0.05 * (want[1:] ** 2).sum()


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_show_in_the_scale_of_their_row(kind, bad):
    x = torch.randn(3, 128)
    want = quantize(kind, x)
    x[1, 70] = bad
    made = quantize(kind, x)
    assert made[-1].isfinite().flatten().tolist() == [True, False, True]
    for got, clean in zip(made, want, strict=True):
        assert all(torch.equal(got[i].view(torch.uint8), clean[i].view(torch.uint8)) for i in (0, 2))


@every
def test_any_strides_and_groups(kind):
    base = torch.randn(64, 12)
    for x in (base.t(), base.t()[::2]):
        for got, want in zip(quantize(kind, x, 16), quantize(kind, x.contiguous(), 16), strict=True):
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
    if kind != "int4":
        q, s_rel, _ = kernels.quantize_decoded(base.t(), KINDS[kind], 32)
        assert s_rel.shape == (12, 2)
        assert q.shape == (12, 64 * KINDS[kind] // 8)


def test_declared_as_torch_wants():
    ops = torch.ops.convert_to_quant
    for n in (3, 0):
        torch.library.opcheck(ops.quantize_int4.default, (torch.randn(n, 64), 16))
        for bits in (4, 6):
            torch.library.opcheck(ops.quantize_decoded.default, (torch.randn(n, 64), bits, 16, 16))


def test_refusals():
    x = torch.zeros(4, 64)
    for op in (kernels.quantize_int4, lambda x, *r: kernels.quantize_decoded(x, 4, 16, *r)):
        with pytest.raises(TypeError, match="float32"):
            op(x.int())
        with pytest.raises(ValueError, match="2-D"):
            op(x[0])
        with pytest.raises(ValueError, match="rotation"):
            op(x, 256)
    with pytest.raises(ValueError, match="whole bytes"):
        kernels.quantize_int4(x[:, :5])
    with pytest.raises(ValueError, match="4 or 6"):
        kernels.quantize_decoded(x, 5)
    for k, group, bits in ((60, 16, 4), (6, 2, 6), (64, 0, 4)):
        with pytest.raises(ValueError, match="whole groups"):
            kernels.quantize_decoded(x[:, :k], bits, group)
