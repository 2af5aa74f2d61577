"""Repairs Triton's interpreter for bfloat16, in the test process only.

It keeps bfloat16 as its bits in uint16: products of two such arrays multiply the bits, and a
conversion from float32 truncates. The compiled kernels do neither.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle


def _widen(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, half to even; NaN stays NaN."""
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    quiet = bits | np.uint32(0x00400000)
    return (np.where(np.isnan(data), quiet, rounded) >> 16).astype(np.uint16)


def repair() -> None:
    """Patch the interpreter's product and its float32 -> bfloat16 conversion."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self, a, b, d, *rest):
        return dot(self, _widen(a), _widen(b), d, *rest)

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.float32 and target == tl.bfloat16:
            return TensorHandle(_narrow(src.data), tl.bfloat16)
        if source.is_int() and target == tl.bfloat16:
            return TensorHandle(_narrow(src.data.astype(np.float32)), tl.bfloat16)
        return cast(self, src, dst_type)

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    for name in (
        "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui",
        "create_fp_ext", "create_fp_trunc", "create_int_cast",
    ):  # fmt: skip
        setattr(builder, name, lambda self, src, dst_type, *_: self.cast_impl(src, dst_type))
