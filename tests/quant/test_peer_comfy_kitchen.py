"""The runtime that stock ComfyUI uses, kernel by kernel: its bytes, its floats and its linear."""

import numpy as np
import oracle
import pytest
import torch
from inputs import heavy, short

from convert_to_quant import kernels

pytest.importorskip("comfy_kitchen")
from comfy_kitchen.tensor import QuantizedTensor, TensorWiseINT8Layout

CASES = [((5, 123), 0), ((64, 512), 0), ((33, 256), 256), ((64, 512), 64), ((7, 48), 16), ((9, 20), 4)]


def peer(w: torch.Tensor, rotation: int) -> tuple[torch.Tensor, torch.Tensor, TensorWiseINT8Layout.Params]:
    """Their per-row quantization of a weight, rotated when asked."""
    options = {"convrot": True, "convrot_groupsize": rotation} if rotation else {}
    q, params = TensorWiseINT8Layout.quantize(w, per_channel=True, **options)
    return q, params.scale, params


@pytest.mark.parametrize(("shape", "rotation"), CASES, ids=short)
def test_same_bytes(shape, rotation):
    """Equal but for ties: they divide where we multiply by the inverse, and sum in another order."""
    w = heavy(*shape)
    w[2] = 0
    q, scale = kernels.quantize_rowwise(w, rotation)
    their_q, their_scale, _ = peer(w, rotation)
    assert their_scale.shape == scale.shape == (shape[0], 1)
    torch.testing.assert_close(scale, their_scale, rtol=1e-6, atol=0)
    exact = oracle.array(w)
    band = oracle.TIE + 2 * oracle.rotation_error(exact, rotation) / oracle.array(scale)
    quotient = oracle.rotate(exact, rotation) / oracle.array(scale)
    differ = (q != their_q).numpy()
    near = np.abs(np.abs(quotient - np.trunc(quotient)) - 0.5) <= band
    assert not (differ & ~near).any()
    assert differ.sum() <= 2 + 1e-3 * differ.size
    assert not q[2].any()
    assert torch.equal(scale[2], their_scale[2])


@pytest.mark.parametrize(("shape", "rotation"), CASES, ids=short)
def test_same_floats(shape, rotation, dtype):
    """Each side reads the other's integers."""
    q, scale = kernels.quantize_rowwise(heavy(*shape, dtype=dtype), rotation)
    params = TensorWiseINT8Layout.Params(
        scale=scale,
        orig_dtype=dtype,
        orig_shape=shape,
        convrot=rotation > 0,
        convrot_groupsize=rotation or 256,
    )
    theirs = TensorWiseINT8Layout.dequantize(q, params)
    ours = kernels.dequantize(q, scale, dtype, rotation)
    assert theirs.dtype == ours.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=step, atol=float(ours.abs().max()) * 1e-6)
    if not rotation:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("rows", "n", "rotation"), [((5,), 16, 0), ((2, 3), 24, 16), ((5,), 8, 64)], ids=short
)
def test_same_linear(rows, n, rotation):
    """Float32 in and out: same activations, same integers, so the same sums; ties may move a step."""
    x, w, bias = torch.randn(*rows, 64), heavy(n, 64), torch.randn(n)
    q, scale = kernels.quantize_rowwise(w, rotation)
    params = TensorWiseINT8Layout.Params(
        scale=scale,
        orig_dtype=torch.float32,
        orig_shape=(n, 64),
        convrot=rotation > 0,
        convrot_groupsize=rotation or 256,
    )
    theirs = torch.nn.functional.linear(x, QuantizedTensor(q, "TensorWiseINT8Layout", params), bias)
    ours = kernels.int8_linear(x, q, scale, bias, rotation)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
