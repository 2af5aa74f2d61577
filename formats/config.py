"""The JSON object in a ``comfy_quant`` tensor: writing it, and reading it as leniently as is safe."""

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError

MAX_BYTES = 1 << 16
"""A larger ``comfy_quant`` is no description of a layer."""


def encode_config(config: Mapping[str, Any]) -> bytes:
    """Return the bytes of a ``comfy_quant`` tensor: UTF-8 JSON without padding."""
    return json.dumps(dict(config)).encode("utf-8")


def decode_config(raw: bytes, where: str) -> dict[str, Any]:
    """Parse the bytes of a ``comfy_quant`` tensor.

    CheckpointError names `where` when they are no JSON object, or one that names no format.
    """
    try:
        config = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{where}: not valid JSON: {e}") from e
    return checked_config(config, where)


def checked_config(config: Any, where: str) -> dict[str, Any]:
    """Return `config` if it is an object that names a format; CheckpointError otherwise."""
    if not isinstance(config, dict) or not isinstance(config.get("format"), str):
        raise CheckpointError(
            f"{where}: names no format: a JSON object with one is expected, not {shown(config)}"
        )
    return config


def shown(value: Any) -> str:
    """Return a value as a message can quote it: shortened, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    text = short.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without "params": its keys stand beside the others, which win, as in ComfyUI."""
    params = config.get("params")
    out = {k: v for k, v in config.items() if k != "params"}
    return {**out, **{k: v for k, v in params.items() if k not in out}} if isinstance(params, dict) else out


def whole_number(value: Any) -> int:
    """Read a size: a whole number, or one written as text, as some tools do ("256"); 0 for anything else."""
    if isinstance(value, bool):
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) else 0


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Read a flag: absent, null and false are off; what ComfyUI takes for true is on."""
    return bool(config.get(key, False))
