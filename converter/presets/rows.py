"""What the rows of the preset table share: short constructors and the diffusers names.

The rows follow the INT8 files published for ComfyUI: every Linear inside the
repeated blocks is quantized, per-block modulation included, and every Linear
outside them keeps its precision. Layers quantized in those files, which the
default must reproduce:

==================  ============  ==================  ==============
Qwen-Image          840 of 846    LTX-2.5             1440 of 1772
Z-Image             202 of 208    MiniMax-H3          250 of 266
Krea 2              224 of 264    MiniMax-H3 pruned   200 of 264
Ideogram 4          204 of 212    Qwen3-VL 8B         252 of 371
Wan 2.2 Animate     480 of 519
==================  ============  ==================  ==============

``strict`` is for people who would rather pay bytes: per-block modulation (a third
of the parameters of Qwen-Image) and the blocks that other converters keep.
"""

from __future__ import annotations

from .facts import Fact, Naming, Variant

# The layers that diffusers puts around the blocks of its transformers. All of them
# stand at the top of the model, so one list serves every family.
DIFFUSERS_KEEP = (
    r"^(x_embedder|context_embedder|context_embedder_2|image_embedder|patch_embed|condition_embedder"
    r"|time_text_embed|time_guidance_embed|time_caption_embed|time_embed|norm_out|proj_out|proj_in)\."
)
# Modulation in diffusers blocks is a Linear inside an adaptive norm.
DIFFUSERS_MODULATION = r"\.norm\d?(_context)?\.linear(_\d)?\."
DIFFUSERS_BLOCKS = r"^(single_)?transformer_blocks\.\d+\."


def naming(*facts: Fact, name: str = "native") -> Naming:
    """Make a naming that is told by ``facts``."""
    return Naming(name, facts)


def diffusers(*facts: Fact) -> Naming:
    """Make the naming of diffusers, told by ``facts``."""
    return Naming("diffusers", facts)


def variant(name: str, *facts: Fact, diffusers: tuple[Fact, ...] | None = None) -> Variant:
    """Make a variant told by ``facts``, or by other facts where diffusers names are used."""
    return Variant(name, (facts,) if diffusers is None else (facts, diffusers))
