"""Which code would serve a device, said in words before anything is run on it."""

import torch

from ._library import LAUNCHERS, Unsupported, _find


def served_by(device: torch.device, op: str = "int8_linear") -> tuple[str, str]:
    """Return ("Triton", the kernels' family) or ("PyTorch", why not Triton) for an op on a device.

    A single call may still be one that the kernels do not take; that is said in the log when it comes.
    """
    if device.type == "cpu":
        return "PyTorch", "the kernels are for GPUs"
    launcher, why = _find(LAUNCHERS[op])
    if launcher is None:
        return "PyTorch", why
    from .triton._arch import arch_of

    try:
        return "Triton", arch_of(device).family
    except Unsupported as reason:
        return "PyTorch", str(reason)
