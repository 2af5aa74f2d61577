"""The folds of Stable Diffusion's UNets, in their transformer blocks, by ComfyUI's names and diffusers'."""

from ....names.rows import Part
from ..folds import BlockFolds, Norm, Up, Values, fold

# Not the values of attn2: IP-Adapters add their own attention's output there, which no fold has changed.
UNET = (
    BlockFolds(
        r"((input|output)_blocks\.\d+|middle_block|(down|up)_blocks\.\d+\.attentions|mid_block\.attentions)"
        r"\.\d+\.transformer_blocks\.\d+",
        (
            fold(*(f"attn1.to_{x}" for x in "qkv"), by=Norm("norm1")),
            fold("attn1.to_out.0", by=Values("attn1.to_v")),
            fold("attn2.to_q", by=Norm("norm2")),
            fold("ff.net.0.proj", by=Norm("norm3")),
            fold("ff.net.2", by=Up("ff.net.0.proj", Part("kv", 0))),
        ),
    ),
)
