"""Extra keep-sets: the model flags that people already type.

In the converters that introduced them (silveroxides' and ThunderFun's) these flags
are substring filters, the only thing that keeps a layer in high precision. Here the
model is recognised from its header, so a flag only adds to what the preset keeps,
and it also works on a file that no preset fits. Patterns match whole components of
a name: as a substring, ``visual``'s ``mlp.down_proj`` also hit the language model
of Qwen2.5-VL and left 74 % of it unquantized.
"""

from __future__ import annotations

from dataclasses import replace

from .facts import KeepSet


def _layers(*names: str) -> str:
    """Return a pattern for any of these components, or runs of components, anywhere in the name."""
    return r"(?:^|\.)(?:" + "|".join(names) + r")(?:\.|$)"


# The model's own proj_out; blocks have layers of that name too, behind their number.
_OUTPUT = r"(?:^|[^\d.]\.)proj_out\."
_VOCABULARY = _layers("embed_tokens", "lm_head", "shared", "relative_attention_bias")

_QWEN_VLM = KeepSet(
    "qwen_vlm",
    "Qwen VLMs: first and last language block, vocabulary, vision tower, extra prediction heads",
    (_VOCABULARY, _layers("in_proj_a", "in_proj_b", "visual", "mtp")),
    ends=(r"(?:^|\.)(?:model|language_model)\.layers\.(\d+)\.",),
)

KEEP_SETS = (
    KeepSet(
        "flux2",
        "Flux-style: shared modulation, guidance, time, input and final layers",
        (
            _layers(r"\w*stream_modulation\w*", "guidance_in", "time_in", "final_layer", "img_in", "txt_in"),
            _layers("time_guidance_embed", "x_embedder", "context_embedder", "norm_out"),
            _OUTPUT,
        ),
    ),
    KeepSet(
        "t5xxl",
        "T5-XXL: vocabulary and position tables; the decoder and its head are removed",
        (_VOCABULARY,),
        # Only T5's own decoder: an all-in-one file also has a VAE with a decoder.
        remove=(r"(?:^|\.)decoder\.(?:block\.\d+\.layer|final_layer_norm|embed_tokens)\.", r"^lm_head\."),
    ),
    KeepSet(
        "mistral",
        "Mistral: vocabulary, vision tower and projector",
        (_VOCABULARY, _layers("vision_tower", "vision_model", "multi_modal_projector", "tekken_model")),
    ),
    KeepSet(
        "visual",
        "the whole vision tower of a text encoder, its merger and projector",
        (
            _layers(
                "visual", "vision_model", "vision_tower", "multi_modal_projector", "merger", "patch_embed"
            ),
        ),
    ),
    KeepSet(
        "hunyuan",
        "HunyuanVideo: text, image, vision and time inputs, final layer",
        (
            _layers(
                "img_in", "txt_in", "time_in", "time_r_in", "guidance_in", "vector_in", "byt5_in", "vision_in"
            ),
            _layers("cond_type_embedding", "final_layer"),
        ),
    ),
    KeepSet(
        "wan",
        "Wan: text, time and image embeddings, head, face and audio modules",
        (
            _layers("text_embedding", "time_embedding", "time_projection", "img_emb", r"head\.head"),
            _layers("casual_audio_encoder", "frame_packer", "trainable_cond_mask", "cond_encoder"),
            _layers("face_encoder", "face_adapter", "motion_encoder", "audio_injector", "condition_embedder"),
        ),
    ),
    KeepSet(
        "qwen",
        "Qwen-Image: embedders, output layers and block 0's image modulation",
        (
            _layers("time_text_embed", "img_in", "txt_in", "norm_out"),
            _OUTPUT,
            _layers(r"transformer_blocks\.0\.img_mod"),
        ),
    ),
    KeepSet(
        "zimage",
        "Z-Image: embedders, final layer and every modulation",
        (
            _layers("x_embedder", "cap_embedder", "clip_text_pooled_proj", "t_embedder", "time_text_embed"),
            _layers("final_layer", "adaLN_modulation", "all_x_embedder", "all_final_layer"),
        ),
    ),
    KeepSet(
        "zimage_refiner",
        "Z-Image: the context and noise refiners",
        (_layers("context_refiner", "noise_refiner"),),
    ),
    KeepSet(
        "distillation_large",
        "Chroma: distilled guidance, input and final layers",
        (_layers("distilled_guidance_layer", "final_layer", "img_in", "txt_in"),),
    ),
    KeepSet("distillation_small", "Chroma: distilled guidance", (_layers("distilled_guidance_layer"),)),
    KeepSet(
        "nerf_large",
        "Radiance: NeRF blocks, distilled guidance, text input, attention outputs",
        (
            _layers("distilled_guidance_layer", "nerf_blocks", "nerf_image_embedder", "txt_in"),
            _layers(r"(?:img|txt)_attn\.proj"),
        ),
    ),
    KeepSet(
        "nerf_small",
        "Radiance: NeRF blocks, distilled guidance",
        (_layers("distilled_guidance_layer", "nerf_blocks", "nerf_image_embedder"),),
    ),
    KeepSet(
        "radiance",
        "Radiance: patch input and NeRF output",
        (_layers("img_in_patch", r"nerf_final_layer\w*", "__x0__"),),
    ),
    KeepSet(
        "anima",
        "Anima: the first block, the second's modulation, embedders, text adapter, final layer",
        (
            _layers(r"blocks\.0", r"blocks\.1\.adaln_modulation\w*", "final_layer", "llm_adapter"),
            _layers("t_embedder", "x_embedder"),
        ),
    ),
    KeepSet(
        "lens",
        "LENS: embedders, output layers and the modulation of every block",
        (
            _layers("time_text_embed", "img_in", "txt_in", "norm_out", r"(?:img|txt)_mod"),
            _OUTPUT,
        ),
    ),
    KeepSet(
        "krea2",
        "Krea 2: first and last layers, time and text inputs, text fusion",
        (_layers("first", "last", "tmlp", "tproj", "txtmlp", "txtfusion"),),
    ),
    KeepSet(
        "ideogram4",
        "Ideogram 4: image, time and text inputs, modulation, final layer",
        (
            _layers("embed_image_indicator", "t_embedding", "llm_cond_proj", "input_proj", "adaln_proj"),
            _layers("final_layer"),
        ),
    ),
    KeepSet(
        "minimaxh3",
        "MiniMax H3: patch, condition and time inputs, token refiner, final layer",
        (
            _layers("audio_patch_proj", "video_patch_proj", "condition_proj", "time_embedder"),
            _layers("token_refiner", "final_layer"),
        ),
    ),
    KeepSet(
        "boogu",
        "Boogu: patch, time and caption embedders, output norm",
        (
            _layers("image_index_embedding", "ref_image_patch_embedder", "time_caption_embed", "x_embedder"),
            _layers("norm_out"),
        ),
    ),
    KeepSet(
        "ltxv2",
        "LTX-2: two blocks at each end, patch and output projections, time modulation, connectors",
        (
            _layers(
                r"transformer_blocks\.(?:0|1|46|47)",
                r"\w*patchify_proj",
                r"\w*adaln_single",
                "audio_proj_out",
            ),
            _layers(r"(?:audio|video)_embeddings_connector", "text_embedding_projection", "to_gate_logits"),
            _layers("audio_vae", "vae", "vocoder"),
            _OUTPUT,
        ),
    ),
    KeepSet(
        "gemma4",
        "Gemma 4: audio and vision towers, their projector, per-layer inputs",
        (
            _layers(r"\w*audio\w*", r"\w*vision\w*", "multi_modal_projector"),
            _layers("per_layer_input_gate", "per_layer_projection"),
        ),
    ),
    _QWEN_VLM,
    replace(_QWEN_VLM, name="qwen35"),
    KeepSet(
        "generic_text",
        "any text encoder: vocabulary, vision tower and projector",
        (_VOCABULARY, _layers("visual", "vision_tower", "vision_model", "multi_modal_projector")),
    ),
    # For a file that is itself a LoRA: its strengths are numbers, not weights.
    KeepSet("lora", "LoRA: alpha and scale tensors", (_layers("alpha", "scale", "dora_scale"),)),
)
