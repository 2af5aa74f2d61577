"""What is wrong with a file by ComfyUI's contract: each layer, the header's list, the names."""

from collections.abc import Iterator

from ...files.checkpoint import TensorInfo
from ...formats.names import CONFIG, MARKER, WEIGHT
from ...names.diffusers import DIFFUSERS, NAMES_KEY, recognise, renamed_without_a_table
from ..presets import detect
from .judge import Examined, Problem, examine
from .layers import StoredFile

_BIAS = ("BF16", "F16", "F32")


def examine_file(stored: StoredFile) -> tuple[dict[str, Examined], list[Problem]]:
    """Judge every layer, by name, and list all problems of the file: the layers' first, in file order."""
    examined = {name: examine(layer, _marker(stored, name)) for name, layer in stored.layers.items()}
    problems = [p for e in examined.values() for p in e.problems]
    for check in (_biases, _raw_integers, _orphans, _prefix, _names, _header, _unlisted, _unread):
        problems += check(stored)
    return examined, problems


def _unread(stored: StoredFile) -> Iterator[Problem]:
    """Report quantized models that ComfyUI hands no quantization data to."""
    checkpoint = stored.checkpoint
    for match in detect(checkpoint.shapes(), checkpoint.metadata):
        inside = [n for n in stored.layers if n.startswith(match.prefix)]
        if inside and not match.preset.stock_since:
            text = (
                f"{len(inside)} quantized layers of {match.preset.title}: stock ComfyUI takes their "
                f"integers for weights and shows noise"
            )
            yield Problem("text encoder", inside[0], text)


def _marker(stored: StoredFile, layer: str) -> TensorInfo | None:
    """Return the ``scaled_fp8`` tensor of the part of the file that a layer is in."""
    inside = [m for m in stored.markers if layer.startswith(m.removesuffix(MARKER))]
    return stored.checkpoint.tensors[max(inside, key=len)] if inside else None


def _biases(stored: StoredFile) -> Iterator[Problem]:
    for layer in stored.layers.values():
        bias = stored.bias(layer)
        if layer.weight.dtype == "I8" and bias is not None and bias.dtype not in _BIAS:
            yield Problem("bias dtype", bias.name, f"a bias in {bias.dtype}: BF16, F16 or F32 is expected")


def _raw_integers(stored: StoredFile) -> Iterator[Problem]:
    """Report INT8 tensors that no layer format describes."""
    owned = {t.name for x in stored.layers.values() for t in (x.weight, *x.companions())}
    for info in stored.checkpoint.tensors.values():
        if info.dtype == "I8" and info.name not in owned:
            yield Problem("INT8 tensor", info.name, "INT8, but no layer's weight: used as raw integers")


def _orphans(stored: StoredFile) -> Iterator[Problem]:
    for name in stored.orphans:
        weight = stored.checkpoint.tensors.get(f"{name.rpartition('.')[0]}.{WEIGHT}")
        beside = f"beside a weight in {weight.dtype}" if weight else "without a weight"
        if name.endswith(f".{CONFIG}"):
            yield Problem("stray comfy_quant", name, f"{beside}: ComfyUI expects INT8 there", "removed")
        else:
            yield Problem("stray scale", name, f"{beside}: it is not used", fatal=False)


def _prefix(stored: StoredFile) -> Iterator[Problem]:
    inside = [n for n in stored.layers if n.startswith("diffusion_model.")]
    if inside:
        text = (
            f"{len(inside)} quantized layers lie under 'diffusion_model.': ComfyUI recognises a model "
            f"without prefix or under 'model.diffusion_model.'"
        )
        yield Problem("prefix", inside[0], text)


def _names(stored: StoredFile) -> Iterator[Problem]:
    """Report quantized layers under diffusers' names: a note where the file says that it is meant so."""
    if not stored.layers:
        return
    found = recognise(stored.checkpoint.tensors)
    renamed = found[1].renamed if found else renamed_without_a_table(stored.checkpoint.tensors)
    if not found and not renamed:
        return
    what = (
        "ComfyUI renames the weights when it loads the file and leaves their scales behind: noise"
        if renamed
        else "ComfyUI does not load them"
    )
    meant = stored.checkpoint.metadata.get(NAMES_KEY) == DIFFUSERS
    text = f"the {len(stored.layers)} quantized layers have diffusers' names: stock {what}"
    if not meant:
        text += "; convert the original again: ComfyUI's names are written by default"
    yield Problem("diffusers names", next(iter(stored.layers)), text, fatal=not meant)


def _header(stored: StoredFile) -> Iterator[Problem]:
    where = "_quantization_metadata"
    if stored.header_error:
        text = f"the header's list is of no use: {stored.header_error}"
        yield Problem("header list", where, text, "written anew from the layers")
    for name in stored.unknown:
        there = f"{name}.weight" in stored.checkpoint.tensors
        text = f"the header lists it, but {'it is not quantized' if there else 'the file has no such layer'}"
        yield Problem("header name", name, f"{text}: ComfyUI fails to load it", "taken off the list")


def _unlisted(stored: StoredFile) -> Iterator[Problem]:
    if not stored.listed or stored.header_error:
        return
    for layer in stored.layers.values():
        if layer.config is not None and not layer.listed_as:
            text = "the header lists other layers, not this one"
            yield Problem("not listed", layer.name, text, "added to the list", fatal=False)
