"""Edits after which a layer is read as other weights than before: that is noise, and no reader would tell."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...formats import Format, read_format
from ...formats.errors import ConversionError
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE
from ..stored.judge import Examined


def noise_warnings(
    examined: Mapping[str, Examined], configs: Mapping[str, Mapping[str, Any]], dropped: Container[str]
) -> Iterator[str]:
    """Yield a line per kind of change after which layers stand for other weights.

    configs: the layers' ``comfy_quant`` after the edit. dropped: the tensors that go.
    """
    found: dict[str, list[str]] = {}
    for name, config in configs.items():
        if examined[name].rotation_unknown:
            continue  # nothing says how it was read before
        before, after = examined[name].format, _after(examined[name], config, dropped)
        if before is not None and after is not None and _weights(before) != _weights(after):
            found.setdefault(f"was {_described(before)}, now {_described(after)}", []).append(name)
    for what, names in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"{names[0]}{more}: read as other weights than before ({what}): noise, unless the file was "
            "wrong; ctq verify with the original tells"
        )


def _after(examined: Examined, config: Mapping[str, Any], dropped: Container[str]) -> Format | None:
    """Return how a layer is read after the edit; None where it cannot be."""
    gone = {s for s, t in examined.layer.tensors.items() if t.name in dropped}
    tensors = {s: t for s, t in examined.stored.items() if s not in gone}
    try:
        return read_format(config, tensors, examined.layer.name)
    except ConversionError:
        return None


def _weights(form: Format) -> Format:
    """Return a format without what does not change the weights that it stands for."""
    extra = tuple(s for s in form.extra if s != INPUT_SCALE)
    return replace(form, full_precision_matrix_mult=False, extra=extra)


def _described(form: Format) -> str:
    return f"{form.name} {form.describe()}{', smoothed' if PRE_QUANT_SCALE in form.extra else ''}"
