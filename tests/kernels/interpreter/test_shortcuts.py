"""What interpreter/shortcuts.py replaces still does what it is there for."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _add_kernel(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x_ptr + at, tl.load(x_ptr + at) + tl.load(y_ptr + at))


def add(x: int, y: int) -> list[int]:
    a, b = (torch.full((4,), v, dtype=torch.int32) for v in (x, y))
    _add_kernel[(1,)](a, b, 4)
    return a.tolist()


def test_an_integer_that_overflows_is_found():
    assert add(2**31 - 2, 1) == [2**31 - 1] * 4
    assert add(-(2**31) + 1, -1) == [-(2**31)] * 4
    for x, y in ((2**31 - 1, 1), (-(2**31), -1)):
        with pytest.raises(Exception, match="add of int32"):
            add(x, y)


def test_each_launch_finds_the_language_as_it_needs_it():
    """The members of triton.language are put back after a launch, and replaced for the next."""
    before = tl.arange
    for _ in range(2):
        assert add(1, 2) == [3] * 4
        assert tl.arange is before
