"""Spares Triton's interpreter what it does again and again, in the test process only.

Half of its time goes into two things that change no result. Every call of a device function replaces
the members of `triton.language` anew, though the launch has done so; and every integer sum or product is
computed a second time, step by step in 64 bits, to look for an overflow, which is then reported only in
a debug mode. Here the members are replaced once a launch, and an overflow is looked for in NumPy and
does fail. A Triton whose insides have other names is left as it is.
"""

import functools

import numpy as np
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def take() -> None:
    """Patch the interpreter, as far as this Triton has what is patched."""
    if hasattr(interpreter, "_LangPatchScope"):
        _patch_once_a_launch()
    if hasattr(TritonSemantic, "binary_op_sanitize_overflow_impl"):
        TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow


def _patch_once_a_launch() -> None:
    """Make `_patch_lang` do nothing for a module that the running launch has patched for already."""
    patch, restore = interpreter._patch_lang, interpreter._LangPatchScope.restore
    done: set[int] = set()

    @functools.wraps(patch)
    def once(fn):
        module = id(fn.__globals__)
        if module in done:
            return interpreter._LangPatchScope()
        done.add(module)
        return patch(fn)

    def restored(scope):
        done.clear()
        restore(scope)

    interpreter._patch_lang, interpreter._LangPatchScope.restore = once, restored


def check_overflow(semantic, lhs, rhs, operation) -> None:
    """Raise OverflowError when an element of `lhs operation rhs` does not fit the operands' integer type."""
    kind = lhs.type.scalar
    if kind.int_bitwidth >= 64:
        return
    wide = (t.handle.data.astype(np.int64) for t in (lhs, rhs))
    exact = EXACT[operation.__name__](*wide)
    low, high = kind.get_int_min_value(), kind.get_int_max_value()
    if exact.size and (exact.min() < low or exact.max() > high):
        raise OverflowError(f"{operation.__name__} of {kind}: {exact.min()} to {exact.max()}")
