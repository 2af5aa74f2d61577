"""All tables of names, and which one a diffusers class has."""

from .flux import FLUX, FLUX2
from .hunyuan_video import HUNYUAN_VIDEO
from .krea import KREA
from .ltx import LTX
from .rows import Row
from .sd3 import SD3
from .wan import WAN
from .z_image import LUMINA2, Z_IMAGE

FAMILIES: dict[str, tuple[Row, ...]] = {
    "flux": FLUX,
    "flux2": FLUX2,
    "hunyuan-video": HUNYUAN_VIDEO,
    "krea2": KREA,
    "ltx-video": LTX,
    "lumina2": LUMINA2,
    "sd3": SD3,
    "wan": WAN,
    "z-image": Z_IMAGE,
}
"""Every family: where a LoRA's names are looked up."""

CLASSES: dict[str, tuple[Row, ...]] = {
    "FluxTransformer2DModel": FLUX,
    "QwenImageTransformer2DModel": (),  # the same names on both sides
    "ZImageTransformer2DModel": Z_IMAGE,
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN,
}
"""By the name of a diffusers class: the tables that name all tensors of a model, not only linear layers."""
