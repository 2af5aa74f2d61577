"""The folds of each family, as its forward pass has them; see `folds` for the words.

Sources: the model classes of ComfyUI 0.33, diffusers and transformers; tests build each class where there is
one, fold it and compare what it computes.
"""

from .flux import CHROMA, FLUX1, FLUX2, HUNYUAN_VIDEO
from .image import (
    AURAFLOW,
    COSMOS_PREDICT2,
    ERNIE_IMAGE,
    HIDREAM_I1,
    JOYIMAGE,
    KREA2,
    LENS,
    PIXART,
    QWEN_IMAGE,
    QWEN_IMAGE21,
    SD3,
)
from .lumina import BOOGU_IMAGE, IDEOGRAM4, OMNIGEN2, Z_IMAGE
from .text_encoders import CLIP, GEMMA, LLAMA, T5
from .unet import UNET
from .video import COGVIDEOX, KANDINSKY5, LTX2, LTX_VIDEO, MINIMAX_H3, MOCHI, WAN

__all__ = [
    "AURAFLOW",
    "BOOGU_IMAGE",
    "CHROMA",
    "CLIP",
    "COGVIDEOX",
    "COSMOS_PREDICT2",
    "ERNIE_IMAGE",
    "FLUX1",
    "FLUX2",
    "GEMMA",
    "HIDREAM_I1",
    "HUNYUAN_VIDEO",
    "IDEOGRAM4",
    "JOYIMAGE",
    "KANDINSKY5",
    "KREA2",
    "LENS",
    "LLAMA",
    "LTX2",
    "LTX_VIDEO",
    "MINIMAX_H3",
    "MOCHI",
    "OMNIGEN2",
    "PIXART",
    "QWEN_IMAGE",
    "QWEN_IMAGE21",
    "SD3",
    "T5",
    "UNET",
    "WAN",
    "Z_IMAGE",
]
