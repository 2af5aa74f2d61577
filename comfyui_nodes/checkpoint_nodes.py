"""The node that saves a model as a quantized checkpoint."""

import logging
from pathlib import Path
from typing import Any

from . import places
from .model_state import diffusion_model, is_quantized, patched_state, source_metadata
from .recording import RECORDS
from .working import converted

logger = logging.getLogger("convert_to_quant.nodes")


class SaveInt8Checkpoint:
    """Saves the model, LoRAs and merges included, as an INT8 checkpoint that stock ComfyUI loads."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "convert_to_quant", "save", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("path",)
    DESCRIPTION = (
        "Saves the model, with its LoRAs, as a quantized checkpoint in the output folder; below "
        "diffusion_models/ ComfyUI's own loader finds it. A model that is quantized already is written as it "
        "is; any other is converted, with the calibration that was chosen."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "filename": ("STRING", {"default": "diffusion_models/model-int8"}),
                "format": format_input(),
                "convrot": ("BOOLEAN", {"default": True}),
            },
            "optional": calibration_inputs(),
        }

    @classmethod
    def VALIDATE_INPUTS(cls, calibration_data: str = places.NONE) -> bool | str:
        """Take also the name of a recorder that has not run yet; a name that leads elsewhere is told."""
        return checked_calibration(calibration_data)

    def save(
        self,
        model: Any,
        filename: str,
        format: str,
        convrot: bool = True,
        calibration_data: str = places.NONE,
        recorded: str | None = None,
    ) -> dict[str, Any]:
        """Write the float weights to a private folder and convert them from there."""
        from convert_to_quant.quant.runtime import write_tensors

        path = places.new_file(filename)
        calibration = chosen_calibration(recorded or calibration_data, model)
        state, metadata = patched_state(model), source_metadata(model)
        if is_quantized(state):
            write_tensors(state.items(), path, metadata)
        else:
            options = conversion_options(format, convrot, calibration)
            with places.private_folder() as folder:
                source = Path(folder) / f"{path.stem}.safetensors"
                write_tensors(state.items(), source, metadata)
                del state
                logger.info("%s", converted(source, path, options))
        name = places.below_output(path)
        return {"ui": {"text": [name]}, "result": (name,)}


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
