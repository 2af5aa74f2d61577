"""Distances that do not fit 32 bits: planes of 2 ** 30 elements, in memory that is only reserved."""

import mmap
import sys

import pytest
import torch

from convert_to_quant.kernels.triton import rotation, weight_only
from convert_to_quant.kernels.triton._epilogue import Epilogue
from convert_to_quant.kernels.triton._operands import argument
from convert_to_quant.kernels.triton._run import Run

APART = (1 << 30) + 8
"""Elements from plane to plane; the third begins beyond 2 ** 31."""


@pytest.fixture
def plane():
    """Gives the beginning of each of three planes as a tensor; the kernel is given the first."""
    if sys.platform != "linux":
        pytest.skip("elsewhere memory may not be reserved without being taken")
    without_reserve = 0x4000  # mmap.MAP_NORESERVE, from Python 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | without_reserve
    memory = mmap.mmap(-1, 4 * APART + (1 << 16), flags=flags)
    return lambda p, count: torch.frombuffer(memory, dtype=torch.bfloat16, count=count, offset=2 * p * APART)


def test_rotation_writes_planes_far_apart(plane):
    x = torch.randn(2, 64)
    planes = [plane(p, 128).view(2, 64) for p in range(3)]
    launch = rotation.launch_rotate(argument(0, x), argument(1, planes[0]), 0, 3)
    launch.args["stride_plane"] = APART
    Run((x, planes[0])).do([launch])
    assert all(p.abs().sum() > 0 for p in planes)
    assert torch.equal(sum(p.float() for p in reversed(planes)), x)


@pytest.mark.parametrize("k", [64, 56], ids=["even", "ragged"])
def test_weight_only_reads_planes_far_apart(plane, k):
    generator = torch.Generator().manual_seed(0)
    planes = [plane(p, 2 * k).view(2, k) for p in range(3)]
    for p in planes:
        p.copy_(torch.randint(-4, 5, (2, k), generator=generator))
    q = torch.randint(-9, 10, (16, k), dtype=torch.int8, generator=generator)
    scale, out = torch.ones(16, 1), torch.empty(2, 16)
    tensors = planes[0].view(1, 2, k).expand(3, 2, k), q, scale, out
    x, w, s, o = (argument(i, t) for i, t in enumerate(tensors))
    config = weight_only.WeightOnlyConfig(16, 16, 64, 4, 1)
    launch = weight_only.launch_weight_only(config, x, w, o, Epilogue(None, s, None, None))
    launch.args["stride_plane"] = APART
    Run(tensors).do([launch])
    assert torch.equal(out, sum(p.float() for p in planes) @ q.float().t())
