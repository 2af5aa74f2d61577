"""What the estimates count, against the operations that an algorithm really asks of PyTorch."""

from math import prod

import pytest
import torch
from calibrated import tokens
from inputs import heavy
from torch.utils._python_dispatch import TorchDispatchMode

from convert_to_quant import kernels
from convert_to_quant.formats import Asked
from convert_to_quant.formats.algorithms import ALGORITHMS
from convert_to_quant.formats.choose import chosen
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer

aten = torch.ops.aten
N, K, TOKENS = 512, 384, 1024


class Counter(TorchDispatchMode):
    """Multiply-adds in products of matrices, and the values that all other operations read and write."""

    def __init__(self):
        super().__init__()
        self.products, self.touches = 0.0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert func.namespace in ("aten", "profiler"), f"{func}: what it does inside is not seen"
        name, given = func.overloadpacket, [a for a in args if isinstance(a, torch.Tensor)]
        if name in (aten.mm, aten.addmm, aten.addmm_, aten.bmm):
            left, right = given[-2:]
            self.products += left.numel() * right.shape[-1]
        elif name in (aten.linalg_cholesky_ex, aten.linalg_solve_triangular):
            self.products += given[0].shape[0] ** 3 / 6
        elif not func.is_view and name is not aten.empty:
            made = [
                t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)
            ]
            self.touches += sum(prod(t.shape) for t in (*given, *made))
        return out


@pytest.fixture
def transparent(monkeypatch):
    """This project's ops run as plain calls of their eager twins, so that what they do inside is seen."""
    from convert_to_quant.kernels import descent, hessian, ldlq, rotation

    for module, twin in (
        (ldlq, ldlq._ldlq_),
        (descent, descent._descend_),
        (hessian, hessian._accumulate_hessian_),
        (rotation, rotation._rotate),
    ):
        monkeypatch.setattr(module, "_op", twin)
    assert kernels.rotate is rotation.rotate


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("ldlq", {}),
        ("ldlq", {"format": "fp8"}),
        ("quip", {"passes": 3}),
        ("original", {"steps": 12}),
        ("adamw", {"steps": 1}),
        ("radam", {"steps": 12, "blind": True}),
    ],
    ids=str,
)
def test_counts_are_within_three_times_of_what_runs(algorithm, settings, transparent):
    settings = dict(settings)
    blind, name = settings.pop("blind", False), settings.pop("format", "int8")
    rotation = 64 if ALGORITHMS[algorithm].rotates else 0
    form = chosen(name, None).make(Asked(rotation=rotation, option=name))
    stats = None if blind else LayerStats(samples=tokens(TOKENS, K))
    weight = heavy(N, K)
    with Counter() as counter:
        quantize_layer(weight, stats, QuantizeOptions(algorithm, form, **settings))
    work = ALGORITHMS[algorithm].work(
        (N, K), 0 if blind else TOKENS, settings.get("steps", 0), settings.get("passes", 0)
    )
    assert work.products / 3 < counter.products < 3 * work.products
    assert work.touches / 3 < counter.touches < 3 * work.touches


def test_rounding_is_not_counted():
    assert ALGORITHMS["rtn"].work((N, K), 0) is None
