"""The nodes: recording calibration data, saving INT8 checkpoints, choosing the INT8 kernel."""

import os
import weakref
from typing import Any

import torch

from .hooks import MissingHook
from .routing import MODES, ROUTER

CATEGORY = "convert_to_quant"
_RECORDERS: dict[str, tuple[Any, Any]] = {}
"""file -> (weak reference to the recorded module, its recorder)."""


class CalibrationRecorder:
    """Records what a model's linear layers see while images are made; `SaveCalibration` writes the file."""

    CATEGORY, FUNCTION = CATEGORY, "start"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("model",)
    DESCRIPTION = (
        "Put between the model loader and the sampler. Record with the unquantized model and the prompts you "
        "really use; every queued run adds to the same record until it is saved."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """The node's inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "filename": ("STRING", {"default": "calibration"}),
                "tokens": ("INT", {"default": 4096, "min": 64, "max": 65536}),
                "memory_gb": ("FLOAT", {"default": 8.0, "min": 0.1, "max": 512.0, "step": 0.1}),
            }
        }

    def start(self, model: Any, filename: str, tokens: int, memory_gb: float) -> tuple[Any]:
        """Attach the recorder to the model's transformer; a recorder for the same model goes on."""
        from convert_to_quant.quant.calibration import Recorder

        module, path = diffusion_model(model), output_path(filename)
        if path in _RECORDERS:
            known, recorder = _RECORDERS[path]
            if known() is module:
                return (model,)
            recorder.__exit__(None, None, None)
        recorder = Recorder(module, tokens=tokens, max_bytes=int(memory_gb * 2**30))
        recorder.__enter__()
        _RECORDERS[path] = (weakref.ref(module), recorder)
        return (model,)


class SaveCalibration:
    """Writes what a CalibrationRecorder of that file name recorded; ``--calibration-data`` reads it."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES, RETURN_NAMES = ("LATENT", "STRING"), ("latent", "path")
    DESCRIPTION = "Put after the sampler, so that it runs when the model has run."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """The node's inputs."""
        return {
            "required": {
                "latent": ("LATENT",),
                "filename": ("STRING", {"default": "calibration"}),
                "keep_recording": ("BOOLEAN", {"default": True}),
            }
        }

    def save(self, latent: Any, filename: str, keep_recording: bool = True) -> tuple[Any, str]:
        """Write the file, and stop recording unless asked to go on."""
        path = output_path(filename)
        if path not in _RECORDERS:
            raise ValueError(f"no CalibrationRecorder with the file name {filename!r} has run")
        recorder = _RECORDERS[path][1]
        recorder.save(path)
        if not keep_recording:
            recorder.__exit__(None, None, None)
            del _RECORDERS[path]
        return latent, path


class SaveInt8Checkpoint:
    """Saves the model, LoRAs and merges included, as an INT8 checkpoint that stock ComfyUI loads."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("path",)
    DESCRIPTION = "A model that is INT8 already is written as it is; another is converted."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """The node's inputs."""
        from convert_to_quant.formats.choose import written

        return {
            "required": {
                "model": ("MODEL",),
                "filename": ("STRING", {"default": "model-int8"}),
                "format": ([f.name for f in written()],),
                "convrot": ("BOOLEAN", {"default": True}),
            },
            "optional": {"calibration_data": ("STRING", {"default": ""})},
        }

    def save(
        self, model: Any, filename: str, format: str, convrot: bool = True, calibration_data: str = ""
    ) -> tuple[str]:
        """Write the float weights beside the output, convert them, remove them again."""
        from convert_to_quant.quant.runtime import write_tensors

        path = output_path(filename)
        state = patched_state(model)
        if any(name.endswith(".comfy_quant") for name in state):
            return (str(write_tensors(state.items(), path)),)
        from convert_to_quant.formats import FORMATS
        from convert_to_quant.quantization import convert_to_int8

        options: dict[str, Any] = {"format": format}
        if FORMATS[format].rotates:
            options["convrot"] = convrot
        if calibration_data:
            options["calibration_data"] = calibration_data
        source = f"{path.removesuffix('.safetensors')}.float.safetensors"
        try:
            write_tensors(state.items(), source)
            del state
            convert_to_int8(source, path, **options)
        finally:
            if os.path.exists(source):
                os.remove(source)
        return (path,)


class Int8Kernel:
    """Chooses who computes INT8 linears: comfy-kitchen, this project's fused kernel, or the faster."""

    CATEGORY, FUNCTION = CATEGORY, "choose"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("model",)
    DESCRIPTION = "For all models of this ComfyUI. auto measures both once for every shape."

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """The node's inputs."""
        return {"required": {"model": ("MODEL",), "fused_kernel": (list(MODES),)}}

    def choose(self, model: Any, fused_kernel: str) -> tuple[Any]:
        """Set the mode; a ComfyUI without the hook gets a message in the node, not a crash at start."""
        try:
            ROUTER.set(fused_kernel)  # type: ignore[arg-type]
        except MissingHook as e:
            raise RuntimeError(f"The fused kernel cannot be used here: {e}") from e
        return (model,)


def diffusion_model(model: Any) -> torch.nn.Module:
    """The transformer inside a MODEL; RuntimeError when it is not where ComfyUI keeps it."""
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(found, torch.nn.Module):
        raise RuntimeError(f"{type(model).__name__} has no model.diffusion_model; is it a diffusion model?")
    return found


def patched_state(model: Any) -> dict[str, torch.Tensor]:
    """The transformer's tensors with all patches applied, under the names that checkpoints have."""
    try:
        from comfy.model_management import load_models_gpu
    except ImportError as e:
        raise RuntimeError(f"saving needs ComfyUI's model management ({e})") from e
    load_models_gpu([model], force_patch_weights=True)
    state = diffusion_model(model).state_dict()
    rename = getattr(getattr(model.model, "model_config", None), "process_unet_state_dict_for_saving", None)
    return dict(rename(state) if callable(rename) else state)


def output_path(filename: str) -> str:
    """`filename` as a safetensors file in ComfyUI's output folder; an absolute path is taken as it is."""
    if not filename.endswith(".safetensors"):
        filename += ".safetensors"
    if os.path.isabs(filename):
        return filename
    try:
        from folder_paths import get_output_directory
    except ImportError:
        return os.path.abspath(filename)
    path = os.path.join(get_output_directory(), filename)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


NODES: dict[str, tuple[type, str]] = {
    "CTQCalibrationRecorder": (CalibrationRecorder, "Calibration recorder"),
    "CTQSaveCalibration": (SaveCalibration, "Save calibration"),
    "CTQSaveInt8Checkpoint": (SaveInt8Checkpoint, "Save INT8 checkpoint"),
    "CTQInt8Kernel": (Int8Kernel, "INT8 kernel"),
}
"""Node class name -> (class, title)."""
