"""Engines with barriers of their own are first tried in a process of their own, once per card and Triton.

A mistake in them would not be an error but a call that never returns, or a CUDA context that is lost with
everything on it. So before the tuner runs such an engine in the user's process, another process multiplies
ragged shapes with it and compares bits. What that process finds is kept beside the tuner's choices.
"""

import logging
import os
import subprocess
import sys
from typing import Any

import torch

from . import _stored
from ._arch import Arch

LIMIT = 180.0
"""Seconds for importing PyTorch, compiling two kernels and some milliseconds of products."""

RIGHT, WRONG, HANGS = "right", "wrong", "hangs"
WRONG_CODE = 3
"""Exit code of the process that found other bits; 0 is right, all others say nothing about the engine."""

SHAPES = ((1, 272, 128), (257, 144, 144), (1000, 4112, 1040), (10241, 1040, 272))
"""(M, N, K): one tile, ragged edges, less than a ring, more tiles than an SM takes at once. With 272 and 4112
columns one CTA of a cluster lies beyond the edge."""

_CODE = (
    "import sys; sys.path[:] = {path!r}; from convert_to_quant.kernels.triton import _proof; "
    "sys.exit(_proof.compare({label!r}, {index}))"
)
_log = logging.getLogger("convert_to_quant.kernels")
_found: dict[tuple[str, str], str | None] = {}


def may_run(arch: Arch, candidate: Any, device: torch.device) -> bool:
    """Return whether a candidate may be run in this process: it needs no proof, or it was proved."""
    if not getattr(candidate, "needs_proof", False):
        return True
    path, entry = _stored.cache_path(arch), f"proof of {candidate.label}"
    key = str(path), entry
    if key not in _found:
        known = _stored.read(path).get(entry)
        _found[key] = known["choice"] if known else _try(candidate.label, device)
        if known is None and _found[key] is not None:
            _stored.add(path, {entry: {"choice": _found[key]}})
        _log.info("candidate %s is %s here", candidate.label, _found[key] or "not proved")
    return _found[key] == RIGHT


def _try(label: str, device: torch.device) -> str | None:
    """Run `compare` in another process; None where that process could not say anything."""
    if getattr(sys, "frozen", False) or not sys.executable or device.type != "cuda":
        return None  # sys.executable is no Python there
    code = _CODE.format(path=sys.path, label=label, index=device.index or 0)
    environment = os.environ | {"CONVERT_TO_QUANT_AUTOTUNE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            timeout=LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return HANGS
    except OSError as error:
        _log.info("no process to try %s in: %s", label, error)
        return None
    if done.returncode not in (0, WRONG_CODE):
        _log.info("trying %s ended with %d: %s", label, done.returncode, done.stderr[-500:])
        return None
    return WRONG if done.returncode else RIGHT


def compare(label: str, index: int) -> int:
    """Multiply all SHAPES with an engine; return 0 for the eager twin's bits, WRONG_CODE for others."""
    from ._gluon import TILES

    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    engine = next(t for t in TILES if t.label == label)
    return 0 if all(same_bits(engine, shape, device) for shape in SHAPES) else WRONG_CODE


def same_bits(engine: Any, shape: tuple[int, int, int], device: torch.device) -> bool:
    """Return whether an engine gives the eager twin's bits, twice, at (M, N, K)."""
    from .. import force_eager, int8_mm
    from ._operands import argument, empty
    from ._run import Run
    from .int8_mm import operands, product

    (m, n, k), g = shape, torch.Generator(device).manual_seed(sum(shape))
    a, b = (torch.randint(-127, 128, (r, k), dtype=torch.int8, device=device, generator=g) for r in (m, n))
    a_scale, b_scale = (torch.rand(r, 1, device=device, generator=g) for r in (m, n))
    tensors = a, b, a_scale, b_scale, torch.randn(n, device=device, generator=g)
    with force_eager():
        want = int8_mm(*tensors)
    for _ in range(2):
        x, w, by_row, by_column, shift = (argument(i, t) for i, t in enumerate(tensors))
        out = empty((m, n), torch.bfloat16, device)
        call = Run(tensors)
        call.source(out).fill_(float("nan"))
        call.do(product(engine, x, w, out, operands(by_row, by_column, shift, None, m, False)))
        if not torch.equal(call.result(out), want):
            return False
    return True
