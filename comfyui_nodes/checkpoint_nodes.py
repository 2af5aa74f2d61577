"""The node that saves a model as a quantized checkpoint."""

import logging
from pathlib import Path
from typing import Any

from . import places
from .converting import ConvertingNode, chosen_calibration, conversion_options, converting_inputs
from .model_state import is_quantized, patched_state, source_metadata
from .working import converted

logger = logging.getLogger("convert_to_quant.nodes")


class SaveInt8Checkpoint(ConvertingNode):
    """Saves the model, LoRAs and merges included, as an INT8 checkpoint that stock ComfyUI loads."""

    FUNCTION, OUTPUT_NODE = "save", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("path",)
    DESCRIPTION = (
        "Saves the model, with its LoRAs, as a quantized checkpoint in the output folder; below "
        "diffusion_models/ ComfyUI's own loader finds it. A model that is quantized already is written as it "
        "is; any other is converted, with the calibration that was chosen."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        usual = {"default": "diffusion_models/model-int8"}
        return converting_inputs(model=("MODEL",), filename=("STRING", usual))

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
