"""All tables of names, and which one a diffusers class has."""

from .auraflow import AURAFLOW
from .flux import CHROMA, FLUX, FLUX2, LONGCAT
from .hunyuan_video import HUNYUAN_VIDEO
from .krea import KREA
from .ltx import LTX
from .pixart import PIXART
from .rows import Row
from .sd3 import SD3
from .wan import WAN
from .z_image import LUMINA2, Z_IMAGE

FAMILIES: dict[str, tuple[Row, ...]] = {
    "auraflow": AURAFLOW,
    "chroma": CHROMA,
    "flux": FLUX,
    "flux2": FLUX2,
    "hunyuan-video": HUNYUAN_VIDEO,
    "krea2": KREA,
    "longcat-image": LONGCAT,
    "ltx-video": LTX,
    "lumina2": LUMINA2,
    "pixart": PIXART,
    "sd3": SD3,
    "wan": WAN,
    "z-image": Z_IMAGE,
}
"""Every family: where a LoRA's names are looked up."""

CLASSES: dict[str, tuple[Row, ...]] = {
    "AuraFlowTransformer2DModel": AURAFLOW,
    "ChromaTransformer2DModel": CHROMA,
    "Flux2Transformer2DModel": FLUX2,
    "FluxTransformer2DModel": FLUX,
    "HunyuanVideoTransformer3DModel": HUNYUAN_VIDEO,
    "LTXVideoTransformer3DModel": LTX,
    "LongCatImageTransformer2DModel": LONGCAT,
    "Lumina2Transformer2DModel": LUMINA2,
    "PixArtTransformer2DModel": PIXART,
    "QwenImageTransformer2DModel": (),  # the same names on both sides
    "SD3Transformer2DModel": SD3,
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN,
    "ZImageTransformer2DModel": Z_IMAGE,
}
"""By the name of a diffusers class: the tables that name all tensors of a model, not only linear layers."""
