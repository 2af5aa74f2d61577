"""What the nodes that convert have in common: the format, the rotation and the calibration they take."""

from pathlib import Path
from typing import Any

from . import places
from .model_state import diffusion_model
from .recording import RECORDS


class ConvertingNode:
    """A node that converts: what it asks for beside its model, and how a calibration's name is checked."""

    CATEGORY = "convert_to_quant"

    @classmethod
    def VALIDATE_INPUTS(cls, calibration_data: str = places.NONE) -> bool | str:
        """Take also the name of a recorder that has not run yet; a name that leads elsewhere is told."""
        return checked_calibration(calibration_data)


def converting_inputs(**own: Any) -> dict[str, Any]:
    """Return a converting node's inputs, as ComfyUI asks for them: its own, then those that all have."""
    return {
        "required": {**own, "format": format_input(), "convrot": ("BOOLEAN", {"default": True})},
        "optional": calibration_inputs(),
    }


def conversion_options(format: str, convrot: bool, calibration: Path | None) -> dict[str, Any]:
    """Return the converter's options for what a node was set to; a rotation only where the format has one."""
    from convert_to_quant.formats.choose import chosen

    options: dict[str, Any] = {"format": format}
    if chosen(format, None).rotates:
        options["convrot"] = convrot
    if calibration is not None:
        options["calibration_data"] = str(calibration)
    return options


def format_input() -> tuple[list[str], dict[str, Any]]:
    """Return the input for a format: every word that names one to write, the usual one first."""
    from convert_to_quant.formats.choose import default_format, writable

    usual = default_format().name
    return [usual, *(word for word in writable() if word != usual)], {"default": usual}


def calibration_inputs() -> dict[str, Any]:
    """Return the inputs by which a node takes a calibration: from a list, or from the node that saved it."""
    known = [places.NONE, *RECORDS.named(), *places.calibration_files()]
    return {
        "calibration_data": (
            known,
            {"default": places.NONE, "tooltip": "A recorder's name, or a file in a calibration folder."},
        ),
        "recorded": ("STRING", {"forceInput": True, "tooltip": "The output of Save calibration."}),
    }


def checked_calibration(name: str) -> bool | str:
    """Return True for a name that a calibration can have, else why not, as ComfyUI's validation wants it."""
    try:
        if name not in ("", places.NONE):
            places.relative(name)
    except ValueError as e:
        return str(e)
    return True


def chosen_calibration(name: str, model: Any = None) -> Path | None:
    """Return the file of the calibration that a node names: of a recorder in this ComfyUI, else on disk.

    None for "none" and "". A record is saved first. ValueError where there is none of that name.
    """
    if name in ("", places.NONE):
        return None
    plain = places.relative(name).removeprefix(f"{places.CALIBRATION}/").removesuffix(".safetensors")
    module = None if model is None else diffusion_model(model)
    found = RECORDS.file_for(plain, module) or places.calibration_file(name)
    if found is None:
        known = ", ".join([*RECORDS.named(), *places.calibration_files()]) or "none"
        raise ValueError(f"there is no calibration {name!r}; there are: {known}")
    return found
