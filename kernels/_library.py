"""The ``convert_to_quant`` operator library: one place where every op is declared.

PyTorch's dispatcher is the only registry of back ends. An op has a schema, a fake (shapes
and dtypes, for ``torch.compile``), an eager twin in plain PyTorch, which is its truth on
every device and its implementation on the CPU, and a device implementation for CUDA (which
is also ROCm's key) and XPU, imported when it is first called.
"""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache, wraps

import torch

NAMESPACE = "convert_to_quant"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_OLDEST_TRITON = (3, 3)  # the oldest that passes the tests (docs/kernels.md)
_DEVICE_KEYS = ("CUDA", "XPU")
_EAGER: ContextVar[bool] = ContextVar("convert_to_quant_force_eager", default=False)
_log = logging.getLogger(NAMESPACE + ".kernels")

LAUNCHERS: dict[str, str] = {}
"""Op -> its Triton launcher as ``"module.function"`` below ``kernels.triton``; filled by `define`."""


class Unsupported(Exception):
    """A device implementation cannot take this call; the message is the condition that failed.

    Raised before anything is launched. The eager twin then runs on the same device.
    """


@contextlib.contextmanager
def force_eager() -> Iterator[None]:
    """Run the eager twins on every device inside the block, in this thread (or task) only."""
    token = _EAGER.set(True)
    try:
        yield
    finally:
        _EAGER.reset(token)


def eager_forced() -> bool:
    """Return whether the caller is inside `force_eager`."""
    return _EAGER.get()


def define(schema: str, *, eager: Callable, fake: Callable, device: str | None = None):
    """Declare one op and return its overload.

    schema: ``"name(Tensor x, ...) -> ..."`` in PyTorch's schema language.
    eager: the reference implementation; it checks its arguments and raises ValueError or
        TypeError with the reason.
    fake: returns empty tensors of the right shape and dtype for the same arguments.
    device: ``"module.function"`` below ``kernels.triton`` with the eager twin's signature, or
        None when the eager twin serves every device.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    for key in _DEVICE_KEYS:
        _LIBRARY.impl(name, on_device(name, eager, device), key)
    if device is not None:
        LAUNCHERS[name] = device
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def on_device(name: str, eager: Callable, target: str | None) -> Callable:
    """Return what the dispatcher calls for op `name` on an accelerator: `target`, or else the eager twin."""

    @wraps(eager)
    def run(*args, **kwargs):
        if target is not None and not _EAGER.get():
            try:
                return _launcher(target)(*args, **kwargs)
            except Unsupported as why:
                _say_once(name, str(why))
        with _full_float32():
            return eager(*args, **kwargs)

    return run


def _launcher(target: str) -> Callable:
    launcher, why = _find(target)
    if launcher is None:
        raise Unsupported(why)
    return launcher


@lru_cache(maxsize=64)
def _find(target: str) -> tuple[Callable | None, str]:
    """Return the launcher, or None and the reason: a failed import too is tried once and not at each call."""
    module, _, function = target.partition(".")
    try:
        found = importlib.import_module("triton").__version__
        if tuple(int(n) for n in found.split(".")[:2]) < _OLDEST_TRITON:
            return None, f"Triton {found} is older than {'.'.join(map(str, _OLDEST_TRITON))}"
        return getattr(importlib.import_module(f"{__package__}.triton.{module}"), function), ""
    except Exception as error:  # a broken install may raise anything
        return None, f"Triton cannot be imported ({type(error).__name__}: {error})"


@lru_cache(maxsize=256)
def _say_once(name: str, why: str) -> None:
    _log.warning("%s runs in plain PyTorch, not in Triton: %s", name, why)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keep TF32 out of the eager twins: its 10-bit mantissa would show in rotations and Hessians."""
    settings = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = getattr(settings, name)
    exact = "ieee" if name == "fp32_precision" else False
    if before == exact:
        yield
        return
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
