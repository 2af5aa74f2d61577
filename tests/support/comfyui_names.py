"""What ComfyUI calls the tensors of diffusers' models, written down from ComfyUI's own loader, for the tests.

A line is ``ours = theirs``, ``ours = x.{a,b}`` where ComfyUI has the rows of x.a and x.b below each other, or
``ours = ~theirs`` where it has the two halves of the rows the other way round. N is the number of a block.
Names are layers' or whole tensors'. Shares nothing with ``names/``.
"""

import torch

FLUX = """
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
double_blocks.N.img_mod.lin = transformer_blocks.N.norm1.linear
double_blocks.N.txt_mod.lin = transformer_blocks.N.norm1_context.linear
double_blocks.N.img_attn.qkv = transformer_blocks.N.attn.{to_q,to_k,to_v}
double_blocks.N.txt_attn.qkv = transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.N.img_attn.norm.query_norm.scale = transformer_blocks.N.attn.norm_q.weight
double_blocks.N.img_attn.norm.key_norm.scale = transformer_blocks.N.attn.norm_k.weight
double_blocks.N.txt_attn.norm.query_norm.scale = transformer_blocks.N.attn.norm_added_q.weight
double_blocks.N.txt_attn.norm.key_norm.scale = transformer_blocks.N.attn.norm_added_k.weight
double_blocks.N.img_attn.proj = transformer_blocks.N.attn.to_out.0
double_blocks.N.txt_attn.proj = transformer_blocks.N.attn.to_add_out
double_blocks.N.img_mlp.0 = transformer_blocks.N.ff.net.0.proj
double_blocks.N.img_mlp.2 = transformer_blocks.N.ff.net.2
double_blocks.N.txt_mlp.0 = transformer_blocks.N.ff_context.net.0.proj
double_blocks.N.txt_mlp.2 = transformer_blocks.N.ff_context.net.2
single_blocks.N.modulation.lin = single_transformer_blocks.N.norm.linear
single_blocks.N.linear1 = single_transformer_blocks.N.{attn.to_q,attn.to_k,attn.to_v,proj_mlp}
single_blocks.N.linear2 = single_transformer_blocks.N.proj_out
single_blocks.N.norm.query_norm.scale = single_transformer_blocks.N.attn.norm_q.weight
single_blocks.N.norm.key_norm.scale = single_transformer_blocks.N.attn.norm_k.weight
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

FLUX2 = """
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
double_blocks.N.img_attn.qkv = transformer_blocks.N.attn.{to_q,to_k,to_v}
double_blocks.N.txt_attn.qkv = transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}
double_blocks.N.img_attn.norm.query_norm.scale = transformer_blocks.N.attn.norm_q.weight
double_blocks.N.img_attn.norm.key_norm.scale = transformer_blocks.N.attn.norm_k.weight
double_blocks.N.txt_attn.norm.query_norm.scale = transformer_blocks.N.attn.norm_added_q.weight
double_blocks.N.txt_attn.norm.key_norm.scale = transformer_blocks.N.attn.norm_added_k.weight
double_blocks.N.img_attn.proj = transformer_blocks.N.attn.to_out.0
double_blocks.N.txt_attn.proj = transformer_blocks.N.attn.to_add_out
double_blocks.N.img_mlp.0 = transformer_blocks.N.ff.linear_in
double_blocks.N.img_mlp.2 = transformer_blocks.N.ff.linear_out
double_blocks.N.txt_mlp.0 = transformer_blocks.N.ff_context.linear_in
double_blocks.N.txt_mlp.2 = transformer_blocks.N.ff_context.linear_out
single_blocks.N.linear1 = single_transformer_blocks.N.attn.to_qkv_mlp_proj
single_blocks.N.linear2 = single_transformer_blocks.N.attn.to_out
single_blocks.N.norm.query_norm.scale = single_transformer_blocks.N.attn.norm_q.weight
single_blocks.N.norm.key_norm.scale = single_transformer_blocks.N.attn.norm_k.weight
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

SD3 = """
pos_embed = pos_embed.pos_embed
x_embedder.proj = pos_embed.proj
context_embedder = context_embedder
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
joint_blocks.N.x_block.adaLN_modulation.1 = transformer_blocks.N.norm1.linear
joint_blocks.0.context_block.adaLN_modulation.1 = transformer_blocks.0.norm1_context.linear
joint_blocks.1.context_block.adaLN_modulation.1 = ~transformer_blocks.1.norm1_context.linear
joint_blocks.N.x_block.attn.qkv = transformer_blocks.N.attn.{to_q,to_k,to_v}
joint_blocks.N.x_block.attn2.qkv = transformer_blocks.N.attn2.{to_q,to_k,to_v}
joint_blocks.N.context_block.attn.qkv = transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}
joint_blocks.N.x_block.attn.ln_q = transformer_blocks.N.attn.norm_q
joint_blocks.N.x_block.attn.ln_k = transformer_blocks.N.attn.norm_k
joint_blocks.N.x_block.attn2.ln_q = transformer_blocks.N.attn2.norm_q
joint_blocks.N.x_block.attn2.ln_k = transformer_blocks.N.attn2.norm_k
joint_blocks.N.context_block.attn.ln_q = transformer_blocks.N.attn.norm_added_q
joint_blocks.N.context_block.attn.ln_k = transformer_blocks.N.attn.norm_added_k
joint_blocks.N.x_block.attn.proj = transformer_blocks.N.attn.to_out.0
joint_blocks.N.x_block.attn2.proj = transformer_blocks.N.attn2.to_out.0
joint_blocks.N.context_block.attn.proj = transformer_blocks.N.attn.to_add_out
joint_blocks.N.x_block.mlp.fc1 = transformer_blocks.N.ff.net.0.proj
joint_blocks.N.x_block.mlp.fc2 = transformer_blocks.N.ff.net.2
joint_blocks.N.context_block.mlp.fc1 = transformer_blocks.N.ff_context.net.0.proj
joint_blocks.N.context_block.mlp.fc2 = transformer_blocks.N.ff_context.net.2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

AURAFLOW = """
positional_encoding = pos_embed.pos_embed
register_tokens = register_tokens
init_x_linear = pos_embed.proj
cond_seq_linear = context_embedder
t_embedder.mlp.0 = time_step_proj.linear_1
t_embedder.mlp.2 = time_step_proj.linear_2
double_layers.N.attn.w1q = joint_transformer_blocks.N.attn.add_q_proj
double_layers.N.attn.w1k = joint_transformer_blocks.N.attn.add_k_proj
double_layers.N.attn.w1v = joint_transformer_blocks.N.attn.add_v_proj
double_layers.N.attn.w1o = joint_transformer_blocks.N.attn.to_add_out
double_layers.N.attn.w2q = joint_transformer_blocks.N.attn.to_q
double_layers.N.attn.w2k = joint_transformer_blocks.N.attn.to_k
double_layers.N.attn.w2v = joint_transformer_blocks.N.attn.to_v
double_layers.N.attn.w2o = joint_transformer_blocks.N.attn.to_out.0
double_layers.N.mlpC.c_fc1 = joint_transformer_blocks.N.ff_context.linear_1
double_layers.N.mlpC.c_fc2 = joint_transformer_blocks.N.ff_context.linear_2
double_layers.N.mlpC.c_proj = joint_transformer_blocks.N.ff_context.out_projection
double_layers.N.mlpX.c_fc1 = joint_transformer_blocks.N.ff.linear_1
double_layers.N.mlpX.c_fc2 = joint_transformer_blocks.N.ff.linear_2
double_layers.N.mlpX.c_proj = joint_transformer_blocks.N.ff.out_projection
double_layers.N.modC.1 = joint_transformer_blocks.N.norm1_context.linear
double_layers.N.modX.1 = joint_transformer_blocks.N.norm1.linear
single_layers.N.attn.w1q = single_transformer_blocks.N.attn.to_q
single_layers.N.attn.w1k = single_transformer_blocks.N.attn.to_k
single_layers.N.attn.w1v = single_transformer_blocks.N.attn.to_v
single_layers.N.attn.w1o = single_transformer_blocks.N.attn.to_out.0
single_layers.N.mlp.c_fc1 = single_transformer_blocks.N.ff.linear_1
single_layers.N.mlp.c_fc2 = single_transformer_blocks.N.ff.linear_2
single_layers.N.mlp.c_proj = single_transformer_blocks.N.ff.out_projection
single_layers.N.modCX.1 = single_transformer_blocks.N.norm1.linear
final_linear = proj_out
modF.1 = ~norm_out.linear
"""

PIXART = """
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = adaln_single.emb.timestep_embedder.linear_1
t_embedder.mlp.2 = adaln_single.emb.timestep_embedder.linear_2
csize_embedder.mlp.0 = adaln_single.emb.resolution_embedder.linear_1
csize_embedder.mlp.2 = adaln_single.emb.resolution_embedder.linear_2
ar_embedder.mlp.0 = adaln_single.emb.aspect_ratio_embedder.linear_1
ar_embedder.mlp.2 = adaln_single.emb.aspect_ratio_embedder.linear_2
y_embedder.y_proj.fc1 = caption_projection.linear_1
y_embedder.y_proj.fc2 = caption_projection.linear_2
t_block.1 = adaln_single.linear
blocks.N.scale_shift_table = transformer_blocks.N.scale_shift_table
blocks.N.attn.qkv = transformer_blocks.N.attn1.{to_q,to_k,to_v}
blocks.N.attn.proj = transformer_blocks.N.attn1.to_out.0
blocks.N.cross_attn.q_linear = transformer_blocks.N.attn2.to_q
blocks.N.cross_attn.kv_linear = transformer_blocks.N.attn2.{to_k,to_v}
blocks.N.cross_attn.proj = transformer_blocks.N.attn2.to_out.0
blocks.N.mlp.fc1 = transformer_blocks.N.ff.net.0.proj
blocks.N.mlp.fc2 = transformer_blocks.N.ff.net.2
final_layer.linear = proj_out
final_layer.scale_shift_table = scale_shift_table
"""

Z_IMAGE_BLOCK = """
STACK.N.attention.qkv = STACK.N.attention.{to_q,to_k,to_v}
STACK.N.attention.out = STACK.N.attention.to_out.0
STACK.N.attention.q_norm = STACK.N.attention.norm_q
STACK.N.attention.k_norm = STACK.N.attention.norm_k
STACK.N.attention_norm1 = STACK.N.attention_norm1
STACK.N.attention_norm2 = STACK.N.attention_norm2
STACK.N.ffn_norm1 = STACK.N.ffn_norm1
STACK.N.ffn_norm2 = STACK.N.ffn_norm2
STACK.N.feed_forward.w1 = STACK.N.feed_forward.w1
STACK.N.feed_forward.w2 = STACK.N.feed_forward.w2
STACK.N.feed_forward.w3 = STACK.N.feed_forward.w3
STACK.N.adaLN_modulation.0 = STACK.N.adaLN_modulation.0
"""

Z_IMAGE = """
x_pad_token = x_pad_token
cap_pad_token = cap_pad_token
x_embedder = all_x_embedder.2-1
cap_embedder.0 = cap_embedder.0
cap_embedder.1 = cap_embedder.1
t_embedder.mlp.0 = t_embedder.mlp.0
t_embedder.mlp.2 = t_embedder.mlp.2
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
""" + "".join(Z_IMAGE_BLOCK.replace("STACK", s) for s in ("layers", "noise_refiner", "context_refiner"))

WAN = """
patch_embedding = patch_embedding
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
blocks.N.modulation = blocks.N.scale_shift_table
blocks.N.norm3 = blocks.N.norm2
blocks.N.self_attn.q = blocks.N.attn1.to_q
blocks.N.self_attn.k = blocks.N.attn1.to_k
blocks.N.self_attn.v = blocks.N.attn1.to_v
blocks.N.self_attn.o = blocks.N.attn1.to_out.0
blocks.N.self_attn.norm_q = blocks.N.attn1.norm_q
blocks.N.self_attn.norm_k = blocks.N.attn1.norm_k
blocks.N.cross_attn.q = blocks.N.attn2.to_q
blocks.N.cross_attn.k = blocks.N.attn2.to_k
blocks.N.cross_attn.v = blocks.N.attn2.to_v
blocks.N.cross_attn.o = blocks.N.attn2.to_out.0
blocks.N.cross_attn.norm_q = blocks.N.attn2.norm_q
blocks.N.cross_attn.norm_k = blocks.N.attn2.norm_k
blocks.N.ffn.0 = blocks.N.ffn.net.0.proj
blocks.N.ffn.2 = blocks.N.ffn.net.2
head.modulation = scale_shift_table
head.head = proj_out
"""

RESNET = """
OURS.in_layers.0 = THEIRS.norm1
OURS.in_layers.2 = THEIRS.conv1
OURS.emb_layers.1 = THEIRS.time_emb_proj
OURS.out_layers.0 = THEIRS.norm2
OURS.out_layers.3 = THEIRS.conv2
OURS.skip_connection = THEIRS.conv_shortcut
"""

ATTENTION = "".join(
    f"OURS.{x} = THEIRS.{x}\n"
    for x in (
        "norm",
        "proj_in",
        "proj_out",
        *(
            f"transformer_blocks.N.{y}"
            for y in (
                *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
                *(f"attn{a}.to_{z}" for a in (1, 2) for z in ("q", "k", "v", "out.0")),
            )
        ),
    )
)

_MODULES = {
    RESNET: {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.2.0": "down_blocks.0.resnets.1",
        "input_blocks.4.0": "down_blocks.1.resnets.0",
        "input_blocks.5.0": "down_blocks.1.resnets.1",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1",
        "output_blocks.2.0": "up_blocks.0.resnets.2",
        "output_blocks.3.0": "up_blocks.1.resnets.0",
        "output_blocks.4.0": "up_blocks.1.resnets.1",
        "output_blocks.5.0": "up_blocks.1.resnets.2",
    },
    ATTENTION: {
        "input_blocks.4.1": "down_blocks.1.attentions.0",
        "input_blocks.5.1": "down_blocks.1.attentions.1",
        "middle_block.1": "mid_block.attentions.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.2.1": "up_blocks.0.attentions.2",
    },
}

SDXL = """
input_blocks.0.0 = conv_in
input_blocks.3.0.op = down_blocks.0.downsamplers.0.conv
output_blocks.2.2.conv = up_blocks.0.upsamplers.0.conv
time_embed.0 = time_embedding.linear_1
time_embed.2 = time_embedding.linear_2
label_emb.0.0 = add_embedding.linear_1
label_emb.0.2 = add_embedding.linear_2
out.0 = conv_norm_out
out.2 = conv_out
""" + "".join(
    lines.replace("OURS", ours).replace("THEIRS", theirs)
    for lines, places in _MODULES.items()
    for ours, theirs in places.items()
)

NAMES = {
    "flux": FLUX,
    "flux2": FLUX2,
    "sd3": SD3,
    "auraflow": AURAFLOW,
    "pixart": PIXART,
    "z-image": Z_IMAGE,
    "wan": WAN,
    "sdxl": SDXL,
}


def renamed(family: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The float tensors of a diffusers model as ComfyUI has them. Every one of them must find its place."""
    out, left = {}, set(tensors)
    for line in NAMES[family].split("\n"):
        if not line:
            continue
        ours, theirs = line.split(" = ")
        for n in (0, 1) if "N" in ours.split(".") else (0,):
            parts = [part.replace(".N.", f".{n}.") for part in _parts(theirs.removeprefix("~"))]
            for leaf in ("", ".weight", ".bias"):
                found = [part + leaf for part in parts if part + leaf in tensors]
                if not found:
                    continue
                assert len(found) == len(parts), (line, leaf)
                whole = torch.cat([tensors[f] for f in found]) if len(found) > 1 else tensors[found[0]]
                if theirs.startswith("~"):
                    whole = torch.cat(whole.chunk(2)[::-1])
                out[ours.replace(".N.", f".{n}.") + leaf] = whole
                left -= set(found)
    assert not left, left
    return out


def _parts(theirs: str) -> list[str]:
    before, _, inner = theirs.partition("{")
    return [before + name for name in inner.removesuffix("}").split(",")]
