"""Triton's own CUDA launcher without a GPU: it compiles for sm_90 and calls a driver that runs nothing.

What is checked or timed this way is everything on the host: binding, specialization, the parsing of
arguments, tensor maps, limits of the device. Launchers are called with CPU tensors, whose addresses
the stub driver takes as a device's.
"""

import atexit
import ctypes
import importlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import triton

from convert_to_quant.kernels._library import LAUNCHERS
from convert_to_quant.kernels.triton import _arch


class NoCompiler(RuntimeError):
    """There is no C compiler to build the stub driver with."""


def launcher(op: str):
    """The function that the dispatcher calls for `op` on a GPU."""
    module, _, function = LAUNCHERS[op].partition(".")
    return getattr(importlib.import_module(f"convert_to_quant.kernels.triton.{module}"), function)


def install(family: str = "sm90") -> ctypes.CDLL:
    """Make the stub Triton's driver in this process, for good. The library counts what it is asked for."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("no C compiler: set CC, or install gcc or clang")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    folder = tempfile.mkdtemp(prefix="stub-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # Triton links against it to the end
    library = os.path.join(folder, "libcuda.so.1")
    command = [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", f"-I{include}", "-o", library]
    subprocess.run([*command, str(Path(__file__).with_name("stub.c"))], check=True)
    os.symlink("libcuda.so.1", os.path.join(folder, "libcuda.so"))  # the name that Triton before 3.6 links
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    loaded = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    for count in ("launches", "boxes", "blocks", "cluster"):
        getattr(loaded, f"stub_{count}").restype = ctypes.c_long
    from triton.backends.nvidia import driver

    class Stub(driver.CudaDriver):
        """The CUDA driver of Triton with devices that differ in their streams; the first one is current."""

        def __init__(self):
            self.current = 0
            self.utils = driver.CudaUtils()
            self.launcher_cls = driver.CudaLauncher
            self.get_device_capability = lambda device=0: (8, 0) if family == "sm80" else (9, 0)
            self.get_current_stream = lambda device: (device or 0) << 8
            self.get_current_device = lambda: self.current

        def set_current_device(self, device):
            self.current = device

    triton.runtime.driver.set_active(Stub())
    _arch._ARCH.set(_arch.Arch(family, "stub"))
    return loaded


def calls(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, tuple[str, tuple]]:
    """Title -> (op, arguments): every launcher at one shape."""
    x, bias = torch.randn(m, k, dtype=dtype), torch.zeros(n, dtype=dtype)
    a, q = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
    row, scale = torch.ones(m, 1), torch.ones(n, 1)
    blocks = torch.ones(-(-n // 128), -(-k // 128))
    width = min(k, 128)
    column = torch.empty(n, width, dtype=torch.int8)
    feedback = torch.eye(width)
    return {
        "quantize_rowwise, rotation 256": ("quantize_rowwise", (x, 256)),
        "quantize_tensorwise": ("quantize_tensorwise", (x,)),
        "quantize_blockwise 128x128": ("quantize_blockwise", (x, 128, 128)),
        "dequantize, rotation 256": ("dequantize", (q, scale, dtype, 256)),
        "rotate 256": ("rotate", (x, 256)),
        "int8_mm": ("int8_mm", (a, q, row, scale, bias)),
        "int8_linear, rotation 256": ("int8_linear", (x, q, scale, bias, 256)),
        "int8_linear, static scale": ("int8_linear", (x, q, torch.ones(()), None, 0, torch.ones(()))),
        "int8_linear, blocks": ("int8_linear", (x, q, blocks, bias)),
        "int8_weight_only_linear": ("int8_weight_only_linear", (x, q, scale, bias)),
        "int8_weight_only_linear, rotation 256": ("int8_weight_only_linear", (x, q, scale, bias, 256)),
        "ldlq_": ("ldlq_", (column, torch.ones(n, width), feedback, scale)),
    }
