"""The nodes that record calibration data while images are made."""

import logging
from typing import Any

from . import places
from .model_state import diffusion_model, loaded_from
from .recording import RECORDS, WRAPPER, Watcher, quantized_layers, some

logger = logging.getLogger("convert_to_quant.nodes")

CATEGORY = "convert_to_quant"
_NAME: dict[str, Any] = {
    "default": "calibration",
    "tooltip": "What the record is called. Its file is output/calibration/NAME_00001_.safetensors.",
}


class CalibrationRecorder:
    """Records what a model's linear layers see while images are made; `SaveCalibration` writes the file."""

    CATEGORY, FUNCTION = CATEGORY, "start"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("model",)
    DESCRIPTION = (
        "Records calibration data while you make images. Put it between the model loader and the sampler. "
        "Use the unquantized model and the prompts you really use; every run through this node adds to the "
        "record of its name."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "model": ("MODEL",),
                "filename": ("STRING", _NAME),
                "tokens": ("INT", {"default": 4096, "min": 64, "max": 65536}),
                "memory_gb": ("FLOAT", {"default": 8.0, "min": 0.1, "max": 512.0, "step": 0.1}),
            }
        }

    def start(self, model: Any, filename: str, tokens: int, memory_gb: float) -> tuple[Any]:
        """Return a copy of the model that records whenever it runs."""
        name = record_name(filename)
        module = diffusion_model(model)
        if not hasattr(model, "add_wrapper_with_key"):
            raise RuntimeError("this ComfyUI has no wrappers of models; update ComfyUI to 0.29 or newer")
        if quantized := quantized_layers(module):
            logger.warning(
                "recording of %s: %d layers are quantized already (%s); record the unquantized model: what "
                "these let through has their error in it, and some do not run as modules at all",
                name,
                len(quantized),
                some(quantized),
            )
        from comfy.patcher_extension import WrappersMP

        recorded = model.clone()
        key = f"{WRAPPER}.{name}"
        recorded.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
        watcher = Watcher(name, loaded_from(model), tokens, int(memory_gb * 2**30))
        recorded.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, watcher)
        return (recorded,)


class SaveCalibration:
    """Writes what a CalibrationRecorder of that name recorded; ``--calibration-data`` reads it."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES, RETURN_NAMES = ("LATENT", "STRING"), ("latent", "calibration")
    DESCRIPTION = (
        "Saves the record below output/calibration/. Put it after the sampler, so that it saves once the "
        "model has run. With keep_recording later runs add to the same file; without, the next run begins a "
        "new record and a new file."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return {
            "required": {
                "latent": ("LATENT",),
                "filename": ("STRING", _NAME),
                "keep_recording": ("BOOLEAN", {"default": True}),
            }
        }

    def save(self, latent: Any, filename: str, keep_recording: bool = True) -> dict[str, Any]:
        """Write the file; return the latent, and the file's name as the other nodes take it."""
        path, lines = RECORDS.save(record_name(filename), keep_recording)
        for line in lines:
            logger.info("calibration saved: %s", line)
        named = places.below_output(path).removeprefix(f"{places.CALIBRATION}/")
        return {"ui": {"text": lines}, "result": (latent, named)}


class CalibrationControl:
    """Stops a record, goes on with it, or forgets it."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "do", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("status",)
    DESCRIPTION = (
        "Controls the recorder of that name, each time it is queued: stop (hooks stay off, the record "
        "stays), continue, or clear (forget what was recorded; files stay)."
    )
    ACTIONS = ("stop", "continue", "clear")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return {"required": {"filename": ("STRING", _NAME), "action": (list(cls.ACTIONS),)}}

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        """Return what is never equal: a control acts each time it is queued."""
        return float("nan")

    def do(self, filename: str, action: str) -> dict[str, Any]:
        """Act, and say what was done."""
        name = record_name(filename)
        if action == "clear":
            said = f"{name}: {RECORDS.clear(name)} records forgotten"
        elif action == "stop":
            RECORDS.stop(name)
            said = f"{name}: stopped"
        else:
            RECORDS.go_on(name)
            said = f"{name}: recording"
        logger.info("calibration %s", said)
        return {"ui": {"text": [said]}, "result": (said,)}


def record_name(filename: str) -> str:
    """Return what a record is called; ValueError as `places.relative`."""
    return places.relative(filename).removesuffix(".safetensors").removeprefix(f"{places.CALIBRATION}/")
