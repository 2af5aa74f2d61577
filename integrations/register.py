"""Putting our config and quantizers into the tables of diffusers and transformers.

transformers has a way for others to register. diffusers has none: its two tables are written to, after a look
whether they, and what our quantizer builds on, are what they were.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from ..formats import ConversionError
from .config import CtqConfig, Method

_NAME = Method.CTQ.value

DIFFUSERS_SINCE = "0.42"
"""Older ones have no hook in ``from_single_file``, and would take INT8 codes for weights there."""
TRANSFORMERS_SINCE = "5.22"
DIFFUSERS_TESTED, TRANSFORMERS_TESTED = "0.42.1", "5.24.0"

_DIFFUSERS_HOOKS = (
    "maybe_update_loaded_keys",
    "maybe_update_state_dict",
    "get_state_dict_and_metadata",
    "check_if_quantized_param",
    "create_quantized_param",
    "preprocess_model",
    "postprocess_model",
)
_TRANSFORMERS_HOOKS = (
    "get_load_operations",
    "get_new_dtype",
    "get_quantize_ops",
    "param_needs_quantization",
    "get_state_dict_and_metadata",
    "preprocess_model",
    "postprocess_model",
)


def register_diffusers() -> type[CtqConfig]:
    """Let diffusers take a CtqConfig, and transformers too where it is installed; return the config's class.

    ConversionError, naming what is missing, for a diffusers that is absent, too old, or has moved its tables.
    """
    auto = _module("diffusers", "diffusers.quantizers.auto", DIFFUSERS_SINCE)
    base = _module("diffusers", "diffusers.quantizers.base", DIFFUSERS_SINCE)
    tables = [getattr(auto, f"AUTO_{t}_MAPPING", None) for t in ("QUANTIZER", "QUANTIZATION_CONFIG")]
    if not all(isinstance(t, dict) for t in tables):
        raise _moved("diffusers", "tables AUTO_QUANTIZER_MAPPING in diffusers.quantizers.auto")
    _check("diffusers", getattr(base, "DiffusersQuantizer", None), _DIFFUSERS_HOOKS)
    from .diffusers import CtqDiffusersQuantizer
    from .single_file import watch_single_files

    watch_single_files()
    quantizers, configs = tables
    quantizers[_NAME] = CtqDiffusersQuantizer  # type: ignore[index]  # seen to be dicts
    configs[_NAME] = CtqConfig  # type: ignore[index]
    if importlib.util.find_spec("transformers") is not None:
        register_transformers()
    return CtqConfig


def register_transformers() -> type[CtqConfig]:
    """Let transformers take a CtqConfig; return the config's class.

    ConversionError, naming what is missing, for a transformers that is absent or too old.
    """
    auto = _module("transformers", "transformers.quantizers.auto", TRANSFORMERS_SINCE)
    base = _module("transformers", "transformers.quantizers.base", TRANSFORMERS_SINCE)
    for name in ("register_quantizer", "register_quantization_config", "AUTO_QUANTIZER_MAPPING"):
        if not hasattr(auto, name):
            raise _moved("transformers", f"{name} in transformers.quantizers.auto")
    _check("transformers", getattr(base, "HfQuantizer", None), _TRANSFORMERS_HOOKS)
    if _NAME not in auto.AUTO_QUANTIZER_MAPPING:
        from transformers.utils.quantization_config import QuantizationConfigMixin

        from .transformers import CtqTransformersQuantizer

        auto.register_quantizer(_NAME)(CtqTransformersQuantizer)
        # It wants its own base class; ours comes first and answers everything.
        config = type(
            CtqConfig.__name__, (CtqConfig, QuantizationConfigMixin), {"__doc__": CtqConfig.__doc__}
        )
        auto.register_quantization_config(_NAME)(config)
    return CtqConfig


def _hide_our_kernels() -> None:
    """Keep transformers from taking a checkout's ``kernels`` folder for the package of that name.

    It looks for one when it is imported, and finds ours where Python runs from the root of a checkout.
    """
    if "kernels" in sys.modules:
        return
    found = importlib.util.find_spec("kernels")
    ours = Path(__file__).resolve().parents[1] / "kernels"
    if found is not None and found.origin and Path(found.origin).resolve().parent == ours:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # Python's word for: there is none


def _module(library: str, name: str, since: str) -> Any:
    """Import a module; ConversionError where its library is absent, older than `since`, or moved it."""
    _hide_our_kernels()
    if importlib.util.find_spec(library) is None:
        raise ConversionError(
            f"{library} is not installed: pip install 'convert-to-quant-toolkit[{library}]'"
        )
    version = importlib.metadata.version(library)
    if _numbers(version) < _numbers(since):
        raise ConversionError(
            f"{library} {version} is too old to load quantized models through it; {since} or newer is needed:"
            f" pip install -U {library}"
        )
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise _moved(library, f"module {name}") from e


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def _check(library: str, cls: Any, hooks: tuple[str, ...]) -> None:
    missing = [h for h in hooks if not hasattr(cls, h)]
    if missing:
        raise _moved(library, f"{missing[0]} in its quantizers")


def _moved(library: str, what: str) -> ConversionError:
    version = importlib.metadata.version(library)
    tested = {"diffusers": DIFFUSERS_TESTED, "transformers": TRANSFORMERS_TESTED}[library]
    return ConversionError(
        f"{library} {version} has no {what}, which convert_to_quant builds on; {library} {tested} had it. "
        "Models can be loaded without it: convert_to_quant.runtime.load_quantized(model, path)"
    )
