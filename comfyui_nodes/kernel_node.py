"""The node that chooses who computes INT8 linears."""

from typing import Any

from .hooks import MissingHook
from .routing import MODES, ROUTER


class Int8Kernel:
    """Chooses who computes INT8 linears: comfy-kitchen, this project's fused kernel, or the faster."""

    CATEGORY, FUNCTION = "convert_to_quant", "choose"
    RETURN_TYPES, RETURN_NAMES = ("MODEL",), ("model",)
    DESCRIPTION = (
        "Chooses the INT8 kernel for all models in this ComfyUI. off: that of comfy-kitchen; on: the fused "
        "kernel of convert_to_quant; auto: whichever is faster, measured once per shape."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        return {"required": {"model": ("MODEL",), "fused_kernel": (list(MODES), {"default": MODES[0]})}}

    def choose(self, model: Any, fused_kernel: str) -> tuple[Any]:
        """Set the mode; a ComfyUI without the hook gets a message in the node, not a crash at start."""
        try:
            ROUTER.set(fused_kernel)  # type: ignore[arg-type]
        except MissingHook as e:
            raise RuntimeError(f"The fused kernel cannot be used here: {e}") from e
        return (model,)
