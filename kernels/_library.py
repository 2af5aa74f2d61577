"""The ``convert_to_quant`` operator library: one place where every op is declared.

PyTorch's dispatcher is the only registry of back ends. An op has a schema, a fake (shapes
and dtypes, for ``torch.compile``) and an eager twin in plain PyTorch, which is its truth on
every device and its implementation on the CPU.
"""

from collections.abc import Callable

import torch

NAMESPACE = "convert_to_quant"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, *, eager: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Declare one op and return its overload.

    schema: ``"name(Tensor x, ...) -> ..."`` in PyTorch's schema language.
    eager: the reference implementation; it checks its arguments and raises ValueError or
        TypeError with the reason.
    fake: returns empty tensors of the right shape and dtype for the same arguments.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default
