"""decode: packed codes of 4 and 6 bits to int8, against what the formats say in float64."""

import format_cases
import pytest
import torch

from convert_to_quant import kernels

op = torch.ops.convert_to_quant.decode.default
KINDS = ("int4", "w4 codebook", "w4", "w6")


def weight(kind: str, n: int = 256, k: int = 192, group: int = 16):
    """Random codes under every finite group scale, as `decode` takes them."""
    g = torch.Generator().manual_seed(0)
    bits = 6 if kind == "w6" else 4
    q = torch.randint(-128, 128, (n, k * bits // 8), generator=g).to(torch.int8)
    if kind == "int4":
        return q, 4, None, None
    scale = (torch.arange(n * (k // group)) % 254).to(torch.uint8).view(n, -1)
    scale = torch.where(scale > 126, scale + 1, scale)  # 127 and 255 are NaN
    codebook = torch.randn(16, generator=g) if kind == "w4 codebook" else None
    return q, bits, scale.view(torch.float8_e4m3fn), codebook


@pytest.mark.parametrize("group", [2, 16, 48, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_against_float64(kind, group):
    q, bits, scale, codebook = operands = weight(kind, group=group)
    got = kernels.decode(*operands)
    tensors = {"weight": q.numpy()}
    config = {"group_size": group, "convrot_groupsize": 0}
    if kind == "int4":
        want = format_cases.int4({**tensors, "weight_scale": torch.ones(256).numpy()}, config)
    else:
        tensors["weight_s_rel"] = scale.view(torch.uint8).numpy()
        tensors["weight_s_channel"] = torch.ones(256).numpy()
        levels = torch.arange(-8.0, 8.0) if codebook is None else codebook
        want = format_cases.w4a8({**tensors, "weight_codebook": levels.numpy()}, config)
    assert (got.dtype, got.shape) == (torch.int8, (256, 192))
    assert torch.equal(got.double(), torch.from_numpy(want))
    assert torch.equal(kernels.decode(q.view(torch.uint8), bits, scale, codebook), got)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotation", [0, 64])
def test_the_linear_is_the_int8_linear_of_what_it_decodes(kind, rotation):
    """Bit for bit: with a static scale, an activation and a bias too."""
    operands = q, bits, scale, codebook = weight(kind)
    x, rows, bias = torch.randn(2, 3, 192), torch.rand(256) * 0.01, torch.randn(256)
    for static, activation in ((None, "silu"), (torch.tensor(0.03), None)):
        got = kernels.packed_linear(
            x, q, bits, rows, scale, codebook, bias, rotation, static, activation
        )  # fmt: skip
        whole = kernels.decode(*operands), rows.view(-1, 1), bias, rotation, static
        assert torch.equal(got, kernels.int8_linear(x, *whole, output_activation=activation))


@pytest.mark.parametrize("kind", ["int4", "w4 codebook"])
def test_declared_as_torch_wants(kind):
    q, bits, scale, codebook = weight(kind, 16, 64)
    scale = None if scale is None else scale.view(torch.uint8)
    torch.library.opcheck(op, (q, bits, scale, codebook))
    torch.library.opcheck(
        torch.ops.convert_to_quant.pack.default, (torch.ones(3, 8, dtype=torch.int8), bits, 2)
    )
    linear = torch.ops.convert_to_quant.packed_linear.default
    torch.library.opcheck(
        linear, (torch.randn(3, 64), q, bits, torch.rand(16), scale, codebook, torch.rand(16))
    )


Q, SCALE = torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 4).to(torch.float8_e4m3fn)
WRONG = [
    (TypeError, "int8 or uint8", (Q.int(), 4)),
    (ValueError, "2-D", (Q[0], 4)),
    (ValueError, "4 bits, or 6", (Q, 6)),
    (ValueError, "4 bits, or 6", (Q, 5, SCALE)),
    (ValueError, "no whole codes", (Q[:, :31], 6, SCALE)),
    (ValueError, "needs scales", (Q, 4, None, torch.ones(16))),
    (TypeError, "float8_e4m3fn", (Q, 4, torch.ones(4, 4))),
    (ValueError, "groups of 64", (Q, 4, SCALE[:, :3])),
    (ValueError, "groups of 64", (Q, 4, SCALE[:3])),
    (ValueError, "codebook", (Q, 4, SCALE, torch.ones(15))),
    (ValueError, "codebook", (Q[:, :24], 6, SCALE, torch.ones(16))),
]


@pytest.mark.parametrize(("error", "words", "operands"), WRONG, ids=[w[1] for w in WRONG])
def test_refusals(error, words, operands):
    with pytest.raises(error, match=words):
        kernels.decode(*operands)


def test_refusals_of_the_linear():
    x, rows = torch.zeros(2, 64), torch.ones(4)
    wrong = {
        "in_features": (x[:, :32], Q, 4, rows),
        "weight_scale": (x, Q, 4, rows[:3]),
        "bias": (x, Q, 4, rows, None, None, torch.ones(3)),
        "input_scale": (x, Q, 4, rows, None, None, None, 0, torch.ones(3, 1)),
        "group": (x, Q, 4, rows, None, None, None, 256),
    }
    for words, operands in wrong.items():
        with pytest.raises(ValueError, match=words):
            kernels.packed_linear(*operands)


def test_packing_is_undone():
    """What `pack` wrote is what is decoded, with scales that leave the codes as they are."""
    codes = torch.randint(-31, 32, (5, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    one = torch.ones(5, 4).to(torch.float8_e4m3fn)
    assert torch.equal(kernels.decode(kernels.pack(codes, 6, 32), 6, one), codes)
    assert torch.equal(kernels.decode(kernels.pack(codes.clamp(-8, 7), 4), 4), codes.clamp(-8, 7))
    assert kernels.pack(codes[:, ::2], 4).shape == (5, 16)
    for wrong, error in ((codes[:, :62], ValueError), (codes.float(), TypeError), (codes[0], ValueError)):
        with pytest.raises(error):
            kernels.pack(wrong, 6)
