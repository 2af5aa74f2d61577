"""A LoRA file as a list of adapters, from its header alone."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from ...files.dtypes import QUANTIZABLE
from ...formats.errors import ConversionError
from .adapter import KIND_ROLES, Adapter
from .keys import parse_key

_ALPHA_KEYS = ("ss_network_alpha", "network_alpha", "lora_alpha", "alpha")


@dataclass(frozen=True)
class LoraFile:
    """The adapters of a LoRA file, the keys that are none, and what tells this file from another."""

    path: str
    adapters: tuple[Adapter, ...]
    unknown: tuple[str, ...]
    stamp: tuple[tuple[str, int, int], ...]


def read_lora_file(path: str | Path) -> LoraFile:
    """Read a LoRA's header.

    ConversionError for a file that is missing, corrupt or no LoRA, for an adapter that is not whole, and for
    a kind of adapter that cannot be merged, by name.
    """
    with open_checkpoint(path) as lora:
        modules, unknown = _modules(lora)
        config = _Config(lora)
        adapters = tuple(a for m, r in modules.items() for a in _adapters(str(path), m, r, config))
        stamp = tuple((str(f.resolve()), s.st_size, s.st_mtime_ns) for f in lora.files for s in (f.stat(),))
    if not adapters:
        names = ", ".join(repr(name) for name in list(lora.tensors)[:3])
        raise ConversionError(
            f"{path}: not a LoRA: none of its {len(lora.tensors)} keys ({names}) is a LoRA's"
        )
    for adapter in adapters:
        adapter.check()
    return LoraFile(str(path), adapters, unknown, stamp)


def _modules(lora: Checkpoint) -> tuple[dict[str, dict[str, TensorInfo]], tuple[str, ...]]:
    modules: dict[str, dict[str, TensorInfo]] = {}
    unknown = []
    for name, info in lora.tensors.items():
        try:
            key = parse_key(name)
        except ConversionError as e:
            raise ConversionError(f"{lora.path}: {e}") from None
        if key is None:
            unknown.append(name)
            continue
        if info.dtype not in QUANTIZABLE and key.role != "alpha":
            raise ConversionError(
                f"{lora.path}: {name!r} is stored as {info.dtype}, not as floats, and cannot be merged"
            )
        roles = modules.setdefault(key.module, {})
        if key.role in roles:
            raise ConversionError(f"{lora.path}: {name!r} and {roles[key.role].name!r} are one tensor twice")
        roles[key.role] = info
    return modules, tuple(unknown)


def _adapters(
    file: str, module: str, roles: Mapping[str, TensorInfo], config: "_Config"
) -> Iterator[Adapter]:
    """Make one module's tensors into adapters: a change of its weight, a change of its bias, or both."""
    alpha, stabilised = config.alpha(module)
    shared = {role: roles[role] for role in ("alpha", "dora") if role in roles}
    for kind, known in KIND_ROLES.items():
        own = {role: info for role, info in roles.items() if role in known}
        if own:
            yield Adapter(file, module, kind, {**own, **shared}, False, alpha, stabilised)
    if "diff_b" in roles:
        yield Adapter(file, module, "diff", {"diff": roles["diff_b"]}, bias=True)
    if "up_bias" in roles:  # PEFT's lora_bias: scaled as the weight's change is
        named = {"diff": roles["up_bias"], **{r: roles[r] for r in ("down", "alpha") if r in roles}}
        yield Adapter(file, module, "diff", named, True, alpha, stabilised)
    if set(roles) <= {"alpha", "dora"}:
        names = ", ".join(repr(t.name) for t in roles.values())
        raise ConversionError(f"{file}: {names}: no up and down tensors belong to it: not a whole LoRA")


class _Config:
    """What a file's metadata, or PEFT's ``adapter_config.json`` beside it, says of alpha."""

    def __init__(self, lora: Checkpoint):
        self._alpha = _number(lora.metadata, *_ALPHA_KEYS)
        self._configs = list(_peft_configs(lora))

    def alpha(self, module: str) -> tuple[float | None, bool]:
        """Return (alpha, whether the root of the rank divides it) of a module without an alpha tensor."""
        for prefix, config in self._configs:
            if not module.startswith(prefix):
                continue
            patterns = config.get("alpha_pattern") or {}
            own = [a for p, a in patterns.items() if _matches(p, module)]
            alpha = own[0] if own else config.get("lora_alpha")
            if isinstance(alpha, int | float):
                return float(alpha), bool(config.get("use_rslora"))
        return self._alpha, False


def _peft_configs(lora: Checkpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (prefix of the modules it is for, PEFT configuration).

    diffusers writes one JSON into the metadata; keys begin with the component: ``transformer.lora_alpha``.
    """
    raw = lora.metadata.get("lora_adapter_metadata")
    flat = _json(raw, f"{lora.path}: lora_adapter_metadata") if raw else {}
    components: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.rpartition(".")
        components.setdefault(f"{component}." if component else "", {})[name] = value
    yield from sorted(components.items(), key=lambda item: -len(item[0]))
    beside = lora.files[0].parent / "adapter_config.json"
    if lora.files[0].name.startswith("adapter_model") and beside.is_file():
        yield "", _json(beside.read_text(encoding="utf-8"), str(beside))


def _matches(pattern: str, module: str) -> bool:
    """Match as PEFT does: a pattern is a regular expression for the end of a module's name."""
    try:
        return re.search(rf"(?:^|\.)(?:{pattern})$", module) is not None
    except re.error:
        return False


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise ConversionError(f"{where}: not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConversionError(f"{where}: a JSON object is expected")
    return value


def _number(metadata: Mapping[str, str], *keys: str) -> float | None:
    for key in keys:
        try:
            return float(metadata[key])
        except (KeyError, ValueError, TypeError):
            continue
    return None
