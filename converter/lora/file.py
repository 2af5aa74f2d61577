"""A LoRA file as a list of adapters, from its header alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ...files.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from ...files.dtypes import QUANTIZABLE
from ...files.regular import parse_json, read_json
from ...files.schema import number, optional, record, table, truth
from ...formats.errors import ConversionError
from ...names.patterns import Pattern, PatternError
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
    with open_checkpoint(Path(path)) as lora:
        modules, unknown = _modules(lora)
        config = _Config(lora)
        adapters = tuple(a for m, r in modules.items() for a in _adapters(str(path), m, r, config))
        files = lora.local_files[1:]
        stamp = tuple((str(f.resolve()), s.st_size, s.st_mtime_ns) for f in files for s in (f.stat(),))
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
        self._alpha = _number(lora, *_ALPHA_KEYS)
        self._configs = list(_peft_configs(lora))

    def alpha(self, module: str) -> tuple[float | None, bool]:
        """Return (alpha, whether the root of the rank divides it) of a module without an alpha tensor."""
        for prefix, config in self._configs:
            if not module.startswith(prefix):
                continue
            own = [alpha for pattern, alpha in config.patterns if pattern.fullmatch(module)]
            alpha = own[0] if own else config.alpha
            if alpha is not None:
                return alpha, config.stabilised
        return self._alpha, False


@dataclass(frozen=True)
class _Peft:
    """What a PEFT configuration says of alpha: for all modules, and by patterns on their names."""

    alpha: float | None
    patterns: tuple[tuple[Pattern, float], ...]
    stabilised: bool


_PEFT = record(
    {
        "lora_alpha": optional(number()),
        "alpha_pattern": optional(table(number())),
        "use_rslora": optional(truth()),
    },
    others=True,
)
"""PEFT's adapter_config.json, as far as it is read."""


def _peft(config: Any, where: str) -> _Peft:
    """Read a configuration. A pattern is one for the end of a module's name, behind a dot, as in PEFT."""
    found = _PEFT(config, where)
    patterns = []
    for pattern, alpha in (found.get("alpha_pattern") or {}).items():
        try:
            patterns.append((Pattern(rf"(?:.*\.)?(?:{pattern})"), alpha))
        except PatternError as e:
            raise ConversionError(f"{where}: alpha_pattern {pattern!r:.80}: {e}") from e
    return _Peft(found.get("lora_alpha"), tuple(patterns), bool(found.get("use_rslora")))


def _peft_configs(lora: Checkpoint) -> Iterator[tuple[str, _Peft]]:
    """Yield (prefix of the modules it is for, PEFT configuration).

    diffusers writes one JSON into the metadata; keys begin with the component: ``transformer.lora_alpha``.
    """
    raw = lora.metadata.get("lora_adapter_metadata")
    where = f"{lora.path}: lora_adapter_metadata"
    flat = table(lambda value, _: value)(parse_json(raw, where), where) if raw else {}
    components: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.rpartition(".")
        components.setdefault(f"{component}." if component else "", {})[name] = value
    for prefix in sorted(components, key=len, reverse=True):
        yield prefix, _peft(components[prefix], where)
    beside = lora.local_files[1].parent / "adapter_config.json"
    if beside.is_file() and lora.files[0].name.startswith("adapter_model"):
        yield "", _peft(read_json(beside), str(beside))


def _number(lora: Checkpoint, *keys: str) -> float | None:
    """Return the first number that the metadata has under `keys`. ConversionError for NaN and infinity."""
    for key in keys:
        try:
            found = float(lora.metadata[key])
        except (KeyError, ValueError):
            continue
        if not isfinite(found):
            raise ConversionError(f"{lora.path}: {key} in its metadata is {found}: the LoRA is damaged")
        return found
    return None
