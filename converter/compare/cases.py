"""The cases that a comparison runs, and the user's function that builds the model for them."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...formats.errors import ConversionError
from ...quant.runtime import empty_weights

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Case:
    """What to run: factory keywords, dtype, and whether the inputs are handed over with odd strides."""

    name: str
    dtype: torch.dtype
    keywords: dict[str, int] = field(default_factory=dict)
    strided: bool = False
    skip: str = ""


def find_factory(spec: str) -> Callable[..., tuple[nn.Module, Any]]:
    """Import the function that ``module:function`` or ``file.py:function`` names; else ConversionError."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConversionError(f"--model must be module:function or file.py:function, not {spec!r}")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise ConversionError(f"--model: {where}: no such file")
            plan = importlib.util.spec_from_file_location(Path(where).stem, where)
            module = importlib.util.module_from_spec(plan)  # type: ignore[arg-type]
            sys.modules[plan.name] = module  # type: ignore[union-attr]
            plan.loader.exec_module(module)  # type: ignore[union-attr]
        else:
            module = importlib.import_module(where)
    except ImportError as e:
        raise ConversionError(f"--model: cannot import {where}: {e}") from e
    function = getattr(module, name, None)
    if not callable(function):
        raise ConversionError(f"--model: {where} has no function {name!r}")
    return function


def build_model(factory: Callable, keywords: dict[str, int], seed: int) -> tuple[nn.Module, Any]:
    """Call the factory under a seed, with parameters on the meta device; return the model and its inputs.

    ConversionError when it returns anything else.
    """
    torch.manual_seed(seed)
    with empty_weights():
        made = factory(**keywords)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ConversionError(f"--model: the function must return (model, inputs), not {type(made).__name__}")
    return made


def plan_cases(spec: str, dtype: str, long: int, seed: int) -> list[Case]:
    """List the cases to run; those that the factory's keywords do not allow are marked."""
    accepted = inspect.signature(find_factory(spec)).parameters
    base = TORCH[dtype]

    def sized(name: str, keyword: str, value: int) -> Case:
        skip = "" if keyword in accepted else f"the factory takes no keyword {keyword!r}"
        return Case(name, base, {keyword: value}, skip=skip)

    return [
        Case("as given", base),
        Case("non-contiguous inputs", base, strided=True),
        sized("one token", "tokens", 1),
        sized(f"{long} tokens", "tokens", long),
        sized("three batches", "batch", 3),
        *(Case(name, value) for name, value in TORCH.items()),
    ]
