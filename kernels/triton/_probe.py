"""Whether Triton can build and launch on a device: one small kernel per device and process decides.

Triton that imports may still lack a C compiler, an assembler or a driver it knows. Found out here, that
sends every op to its eager twin; found out later, it would be an error in the user's model.
"""

import threading

import torch
import triton
import triton.language as tl

from .._library import Unsupported
from ._launch import on

_lock = threading.Lock()
_found: dict[torch.device, str | None] = {}
"""Device -> why Triton cannot be used there, or None."""


@triton.jit
def _count_kernel(out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, i + 1)


def check(device: torch.device) -> None:
    """Launch once per device and process; Unsupported, with the reason, where that failed.

    Inside graph capture, where the result could not be read, a device not yet tried counts as good.
    """
    if device not in _found:
        with on(device):
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return
            with _lock:
                if device not in _found:
                    _found[device] = _try(device)
    why = _found[device]
    if why is not None:
        raise Unsupported(why)


def _try(device: torch.device) -> str | None:
    out = torch.zeros(16, dtype=torch.int32, device=device)
    try:
        _count_kernel[(1,)](out, 16)
        counted = out.tolist()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's, the linker's, the driver's
        first = (str(error) or "no message").splitlines()[0]
        return f"Triton cannot run a kernel on {device} ({type(error).__name__}: {first})"
    if counted != list(range(1, 17)):
        return f"a kernel built by Triton gives wrong results on {device}"
    return None
