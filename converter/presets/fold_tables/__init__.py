"""The folds of each family, as its forward pass has them; see `folds` for the words.

Sources: the model classes of ComfyUI 0.33, diffusers and transformers; tests build each class where there is
one, fold it and compare what it computes.
"""

from .flux import CHROMA, FLUX1, FLUX2, HUNYUAN_VIDEO
from .image import KREA2, QWEN_IMAGE, SD3, Z_IMAGE
from .text_encoders import CLIP, GEMMA, LLAMA, T5
from .video import LTX_VIDEO, WAN

__all__ = [
    "CHROMA",
    "CLIP",
    "FLUX1",
    "FLUX2",
    "GEMMA",
    "HUNYUAN_VIDEO",
    "KREA2",
    "LLAMA",
    "LTX_VIDEO",
    "QWEN_IMAGE",
    "SD3",
    "T5",
    "WAN",
    "Z_IMAGE",
]
