"""Files that hold no model to quantize, by the names in their headers: what each is, and what uses it."""

from __future__ import annotations

from dataclasses import dataclass

from .detect import detect
from .facts import Fact, Shapes, has, lacks, ndim


@dataclass(frozen=True)
class OtherFile:
    """A kind of file. ways: facts of which one group holds. title: what it is, for a sentence."""

    title: str
    ways: tuple[tuple[Fact, ...], ...]

    def holds(self, shapes: Shapes) -> bool:
        """Tell whether a header is of this kind."""
        return any(all(fact.holds(shapes) for fact in way) for way in self.ways)


OTHER_FILES = (
    OtherFile(
        "a ControlNet",
        (
            (has("controlnet_blocks.0.weight"),),
            (has("controlnet_x_embedder.weight"),),
            (
                has("control_model.input_hint_block.0.weight"),
                lacks("model.diffusion_model.input_blocks.0.0.weight"),
            ),
            (has("input_hint_block.0.weight"),),
            (has("controlnet_cond_embedding.conv_in.weight"),),
            (has("controlnet_down_blocks.0.weight"),),
            (has("lllite_unet_input_blocks_1_0_emb_layers_1.weight"),),
        ),
    ),
    OtherFile(
        "a VAE",
        (
            (ndim("decoder.conv_in.weight", 4),),
            (ndim("decoder.conv_in.weight", 5),),
            (has("decoder.conv_in.conv.weight"),),  # LTX-Video, HunyuanVideo
            (ndim("decoder.conv1.weight", 5), has("encoder.conv1.weight")),  # Wan
            (has("decoder.layers.0.weight_v"), has("encoder.layers.0.weight_v")),  # Stable Audio
        ),
    ),
    OtherFile(
        "an upscaler",
        (
            (ndim("model.0.weight", 4), has("model.1.sub.0.RDB1.conv1.0.weight")),  # ESRGAN
            (ndim("conv_first.weight", 4), has("body.0.rdb1.conv1.weight")),  # Real-ESRGAN
            (ndim("conv_first.weight", 4), has("conv_after_body.weight")),  # SwinIR, HAT, DAT
            (ndim("body.0.weight", 4), has("body.1.weight"), ndim("body.2.weight", 4)),  # compact Real-ESRGAN
        ),
    ),
    OtherFile(
        "an IP-Adapter",
        (
            (has("ip_adapter.1.to_k_ip.weight"),),
            (has("image_proj.proj.weight"), has("image_proj.norm.weight")),
        ),
    ),
    OtherFile("a textual inversion", ((has("emb_params"),), (has("string_to_param.*"),))),
)


def other_file(shapes: Shapes) -> OtherFile | None:
    """Return what a file is instead of a model; None where nothing tells, or a model is recognised in it."""
    kind = next((kind for kind in OTHER_FILES if kind.holds(shapes)), None)
    return None if kind is None or detect(shapes) else kind
