"""The int8 product on sm_90 with a product in flight, written in Gluon (`_gluon_gemm`): when and how.

Triton waits for each int8 wgmma before it issues the next. The Gluon kernel does not, and it brings its own
barriers, so it is never taken unmeasured and never before it was proved on this very card (`_proof`).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from ._epilogue import Epilogue
from ._launch import Descriptor, Launch, cdiv
from ._operands import Operand

LEAST_ROWS = 257
"""Below, tiles of 256 rows leave most processors without work."""


class GluonConfig(NamedTuple):
    """A tile of the Gluon product. Two warp groups multiply halves of it, one more warp loads.

    registers: per thread, on average over twelve warps: 232 for the eight that multiply, 40 for the rest.
    ctas: of a cluster, which makes as many tiles side by side; a's boxes come from L2 once for all of them.
    """

    block_m: int = 256
    block_n: int = 128
    block_k: int = 128
    num_stages: int = 4
    registers: int = 168
    ctas: int = 1

    @property
    def label(self) -> str:
        clusters = f" cluster{self.ctas}" if self.ctas > 1 else ""
        return f"gluon {self.block_m}x{self.block_n}x{self.block_k} stages{self.num_stages}{clusters}"

    @property
    def handicap(self) -> float:
        return 1.0

    @property
    def num_warps(self) -> int:
        """Warps that multiply."""
        return 8

    @property
    def needs_proof(self) -> bool:
        """The tuner runs this only after `_proof` has: barriers of its own could hang the caller."""
        return True


TILES = (GluonConfig(), GluonConfig(ctas=2))


TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
"""Major and minor number of the installed Triton."""


@lru_cache(maxsize=1)
def available() -> bool:
    """Return whether this Triton has a Gluon with all that the kernel is written with (3.6 to 3.9 have).

    3.5 has the same modules, and other arguments for layouts.
    """
    if TRITON < (3, 6):
        return False
    try:
        from . import _gluon_gemm  # noqa: F401
    except (ImportError, AttributeError):
        return False
    return True


@lru_cache(maxsize=1)
def multicasts() -> bool:
    """Return whether this Triton compiles clusters as the kernel means them.

    3.6 has no multicast. 3.7 has it, but where two CTAs share a barrier each arrives at one of its own, and
    nothing is said. 3.9 is the version whose machine code is read.
    """
    return available() and TRITON >= (3, 9)


def tiles(family: str, shape: tuple[int, int, int]) -> list[GluonConfig]:
    """Return the tiles for a product of shape (M, N, K); the operands' rows are on 16-byte boundaries.

    Triton proves 16-byte stores only for an N that 16 divides; narrower ones spill. A cluster wants a tile
    for each of its CTAs.
    """
    m, n, k = shape
    served = family == "sm90" and m >= LEAST_ROWS and n % 16 == 0
    found = [t for t in TILES if k >= t.block_k and n > t.block_n * (t.ctas - 1)] if served else []
    if not found or not available():
        return []
    return [t for t in found if t.ctas == 1 or multicasts()]


def launch_gluon(config: GluonConfig, a: Operand, b: Operand, out: Operand, epilogue: Epilogue) -> Launch:
    """Return the launch for a int8 [M, K], b int8 [N, K] into contiguous out [M, N]: one CTA per SM."""
    from . import _gluon_gemm as gemm

    (m, k), n = a.shape, b.shape[0]
    ctas, columns = config.ctas, config.block_n * config.ctas
    box_a, box_b = [config.block_m, config.block_k], [columns, config.block_k]  # those of a whole cluster
    args = {
        "a_desc": Descriptor(a, box_a, gemm.box_layout(box_a, ctas, shared=True)),
        "b_desc": Descriptor(b, box_b, gemm.box_layout(box_b, ctas)),
        "out_ptr": out,
        "M": m,
        "N": n,
        "K": k,
        "stride_om": n,
        "BLOCK_M": config.block_m,
        "BLOCK_N": columns,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        "STAGES": config.num_stages,
        "CTAS": ctas,
        **epilogue.arguments(),
    }
    # A grid counts programs, so clusters: Triton's launcher multiplies it by num_ctas.
    grid = (min(cdiv(m, config.block_m) * cdiv(n, columns), _processors(out.device) // ctas),)
    options = {"maxnreg": config.registers, "num_ctas": ctas}
    return Launch(gemm._int8_mm_gluon_kernel, grid, args, config.num_warps, 1, options)


@lru_cache(maxsize=32)
def _processors(device: torch.device) -> int:
    """Return the SMs of a device; an H100's where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
