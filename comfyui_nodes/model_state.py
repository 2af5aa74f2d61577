"""What is inside a MODEL, and its tensors as a checkpoint has them."""

import os
from typing import Any

import torch

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.folding.coding import KEY as FOLD
from convert_to_quant.formats.names import CONFIG, METADATA_KEY

_NARROW = (torch.bfloat16, torch.float16)


def diffusion_model(model: Any) -> torch.nn.Module:
    """Return the transformer inside a MODEL; RuntimeError when it is not where ComfyUI keeps it."""
    found = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not isinstance(found, torch.nn.Module):
        raise RuntimeError(f"{type(model).__name__} has no model.diffusion_model; is it a diffusion model?")
    return found


def patched_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the transformer's tensors with all patches applied, under the names that checkpoints have.

    They are ComfyUI's own for saving, some of which are made when they are brought ``to("cpu")``. On a CPU
    they have the dtypes that they were loaded with; RuntimeError outside ComfyUI.
    """
    try:
        from comfy.model_management import load_models_gpu
    except ImportError as e:
        raise RuntimeError(f"saving needs ComfyUI's model management ({e})") from e
    if not hasattr(model, "state_dict_for_saving"):
        raise RuntimeError("this ComfyUI gives no tensors for saving; update it to 0.29 or newer")
    diffusion_model(model)
    load_models_gpu([model])
    state = dict(model.state_dict_for_saving())
    if getattr(model, "load_device", torch.device("cpu")).type != "cpu":
        return state
    return narrowed({name: t.to("cpu") for name, t in state.items()}, patched_names(model))


def loaded_from(model: Any) -> str:
    """Return the file that ComfyUI loaded a MODEL from, "" where it does not say."""
    files = loaded_files(model)
    return files[0] if len(files) == 1 else ""


def loaded_files(model: Any) -> list[str]:
    """Return the files that a patcher's model was loaded from: one, several text encoders, or none known."""
    init = getattr(model, "cached_patcher_init", None)
    paths = init[1][0] if init and len(init) > 1 and init[1] else []
    return [p for p in (paths if isinstance(paths, list | tuple) else [paths]) if isinstance(p, str) and p]


def source_metadata(model: Any) -> dict[str, str]:
    """Return the header's texts of the file that a MODEL was loaded from, which some models are read by.

    Without what says how that file was quantized, with its folds; {} where there is no such safetensors file.
    """
    path = loaded_from(model)
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        return {}
    with open_checkpoint(path) as file:
        own = (METADATA_KEY, "convert_to_quant.")
        return {k: v for k, v in file.metadata.items() if k == FOLD or not k.startswith(own)}


def patched_names(model: Any) -> tuple[str, ...]:
    """Return what LoRAs and merges of a MODEL change, as the ends of tensor names in a checkpoint."""
    return tuple(str(name).removeprefix("diffusion_model.") for name in getattr(model, "patches", None) or {})


def is_quantized(state: dict[str, torch.Tensor]) -> bool:
    """Tell whether a state dict has quantized layers."""
    return any(name.endswith(f".{CONFIG}") for name in state)


def narrowed(state: dict[str, torch.Tensor], patched: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the tensors in the dtype that they were loaded with, where ComfyUI widened them to float32.

    On a CPU it runs most models in float32. Most tensors' values then fit bfloat16, or float16, without a
    bit lost: those that fit are stored so, and so are the `patched` ones (names, or ends of names), whose
    values are new. A model of real float32 values stays as it is, and so does what a quantized layer has
    beside its bias.
    """
    free = {name: t for name, t in state.items() if _widened(name, t, state)}
    fits = {d: {n for n, t in free.items() if torch.equal(t.to(d).float(), t)} for d in _NARROW}
    size = {d: sum(free[n].numel() for n in names) for d, names in fits.items()}
    dtype = max(size, key=lambda d: size[d])
    if 2 * size[dtype] <= sum(t.numel() for t in free.values()):
        return state
    narrow = fits[dtype] | {n for n in free if patched and n.endswith(patched)}
    return {name: t.to(dtype) if name in narrow else t for name, t in state.items()}


def _widened(name: str, tensor: torch.Tensor, state: dict[str, torch.Tensor]) -> bool:
    layer = name.rpartition(".")[0]
    return tensor.dtype == torch.float32 and (f"{layer}.{CONFIG}" not in state or name == f"{layer}.bias")
