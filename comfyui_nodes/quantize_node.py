"""The node that quantizes a MODEL as it was loaded."""

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from . import places
from .converting import ConvertingNode, chosen_calibration, conversion_options, converting_inputs
from .model_state import is_quantized, patched_state, source_metadata
from .working import converted

logger = logging.getLogger("convert_to_quant.nodes")

_CARRIED = ("object_patches", "wrappers", "callbacks")
"""What nodes before this one may have set on a MODEL beside its weights and its options."""


class QuantizeModel(ConvertingNode):
    """Quantizes a model as it was loaded, with its LoRAs, for this session: any format, no file to keep."""

    FUNCTION = "quantize"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("model",)
    DESCRIPTION = (
        "Quantizes the model, LoRAs and merges included, and gives the quantized one, to try a format before "
        "a file of it is made. Put it after the loader and the LoRAs. The work is that of Convert "
        "checkpoint; what is written lies in ComfyUI's temporary folder and goes with the model."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return converting_inputs(model=("MODEL",))

    def quantize(
        self,
        model: Any,
        format: str,
        convrot: bool = True,
        calibration_data: str = places.NONE,
        recorded: str | None = None,
    ) -> tuple[Any]:
        """Convert the model's weights in the temporary folder, and load what comes out."""
        from comfy.sd import load_diffusion_model

        from convert_to_quant.quant.runtime import write_tensors

        calibration = chosen_calibration(recorded or calibration_data, model)
        state = patched_state(model)
        if is_quantized(state):
            raise ValueError("this model is quantized already; give the node the unquantized one")
        with places.private_folder() as folder:
            source = Path(folder) / "model.safetensors"
            write_tensors(state.items(), source, source_metadata(model))
            del state
            kept = Path(tempfile.mkdtemp(prefix="convert_to_quant-model-", dir=Path(folder).parent))
            try:
                target = kept / "model.safetensors"
                logger.info("%s", converted(source, target, conversion_options(format, convrot, calibration)))
                made = load_diffusion_model(str(target))
            except BaseException:
                shutil.rmtree(kept, ignore_errors=True)
                raise
        weakref.finalize(made.model, shutil.rmtree, kept, ignore_errors=True)
        return (carried(model, made),)


def carried(model: Any, made: Any) -> Any:
    """Give `made` the options that nodes have set on `model`; return it."""
    if hasattr(model, "model_options"):
        made.model_options = model.clone().model_options
    for name in _CARRIED:
        if getattr(model, name, None):
            setattr(made, name, getattr(model.clone(), name))
    return made
