"""Tiny models of ComfyUI's own classes, for families that diffusers has not or names otherwise."""

import comfy.ops
import torch
from safetensors.torch import load_file, save_file

TOKENS = (1, 5, 48)
"""The shape of a prompt."""


def _g(seed=7):
    return torch.Generator().manual_seed(seed)


def _draw(*shape, seed=7):
    return torch.randn(*shape, generator=_g(seed))


def lens():
    from comfy.ldm.lens.model import LensTransformer2DModel as Lens

    sizes = {"in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 32}
    sizes |= {"num_attention_heads": 4, "enc_hidden_dim": 24, "axes_dims_rope": (8, 12, 12)}
    model = Lens(**sizes, selected_layer_index=(0, 1), **_common())
    return model, (_draw(1, 16, 4, 4), torch.tensor([0.7]), _draw(*TOKENS)), {}


def ernie_image():
    from comfy.ldm.ernie.model import ErnieImageModel

    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 256}
    sizes |= {"in_channels": 4, "out_channels": 4, "text_in_dim": 48, "rope_axes_dim": (8, 12, 12)}
    model = ErnieImageModel(**sizes, **_common())
    return model, (_draw(1, 4, 4, 4), torch.tensor([0.7]), _draw(*TOKENS)), {}


def omnigen2():
    from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel as OmniGen2

    sizes = {"in_channels": 4, "hidden_size": 128, "num_layers": 2, "num_refiner_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (8, 12, 12), "text_feat_dim": 48}
    model = OmniGen2(**sizes, **_common())
    given = (_draw(1, 4, 8, 8), torch.tensor([0.7]), _draw(*TOKENS), 5)
    return model, given, {"ref_latents": [_draw(1, 4, 8, 8, seed=8)]}


def cosmos_predict2():
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT

    sizes = {"max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 4, "out_channels": 4}
    sizes |= {"patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": False, "model_channels": 128}
    sizes |= {"num_blocks": 2, "num_heads": 4, "crossattn_emb_channels": 48, "use_adaln_lora": True}
    model = MiniTrainDIT(**sizes, adaln_lora_dim=32, pos_emb_cls="rope3d", **_common())
    return model, (_draw(1, 4, 2, 8, 8), torch.tensor([0.7]), _draw(*TOKENS)), {}


def cogvideox():
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel as CogVideoX

    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4, "out_channels": 4}
    sizes |= {"time_embed_dim": 64, "text_embed_dim": 48, "num_layers": 2, "max_text_seq_length": 8}
    model = CogVideoX(**sizes, use_rotary_positional_embeddings=True, **_common())
    return model, (_draw(1, 4, 2, 8, 8), torch.tensor([700.0]), _draw(*TOKENS)), {}


def ideogram4():
    from comfy.ldm.ideogram4.model import Ideogram4Transformer2DModel as Ideogram4

    sizes = {"in_channels": 16, "num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 32}
    sizes |= {"intermediate_size": 256, "adaln_dim": 64, "llm_features_dim": 48, "mrope_section": (4, 2, 2)}
    model = Ideogram4(**sizes, **_common())
    return model, (_draw(1, 16, 4, 4), torch.tensor([0.7]), _draw(*TOKENS)), {}


def kandinsky5():
    from comfy.ldm.kandinsky5.model import Kandinsky5

    sizes = {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 48, "in_text_dim2": 16, "time_dim": 64}
    sizes |= {"model_dim": 128, "ff_dim": 256, "visual_embed_dim": 16, "num_text_blocks": 1}
    model = Kandinsky5(**sizes, num_visual_blocks=2, axes_dims=(8, 12, 12), **_common())
    return model, (_draw(1, 4, 2, 8, 8), torch.tensor([0.7]), _draw(*TOKENS), _draw(1, 16)), {}


def boogu_image():
    from comfy.ldm.boogu.model import BooguTransformer2DModel as Boogu

    sizes = {"in_channels": 4, "hidden_size": 128, "num_layers": 1, "num_double_stream_layers": 1}
    sizes |= {
        "num_refiner_layers": 1,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "axes_dim_rope": (8, 12, 12),
    }
    model = Boogu(**sizes, instruction_feat_dim=48, **_common())
    given = (_draw(1, 4, 8, 8), torch.tensor([0.7]), _draw(*TOKENS), 5)
    return model, given, {"ref_latents": [_draw(1, 4, 8, 8, seed=8)]}


def hidream_i1():
    from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel as HiDream

    sizes = {"patch_size": 2, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "text_emb_dim": 32}
    sizes |= {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)}
    sizes |= {"num_activated_experts": 4}  # else some are asked for no token
    model = HiDream(**sizes, caption_channels=[48, 48], llama_layers=[0, 1], **_common())
    given = (_draw(1, 4, 8, 8), torch.tensor([700.0]), _draw(1, 32), _draw(*TOKENS), _draw(1, 2, 5, 48))
    return model, given, {}


def hunyuan3d():
    from comfy.ldm.hunyuan3d.model import Hunyuan3Dv2

    sizes = {"in_channels": 8, "context_in_dim": 48, "hidden_size": 128, "num_heads": 4}
    model = Hunyuan3Dv2(**sizes, depth=1, depth_single_blocks=1, **_common())
    return model, (_draw(1, 8, 16), torch.tensor([0.7]), _draw(*TOKENS)), {}


def minimax_h3():
    from comfy.ldm.minimax.model import MiniMaxH3Model

    sizes = {"hidden_size": 128, "num_layers": 2, "token_refiner_num_layers": 1, "num_attention_heads": 6}
    sizes |= {"attention_head_dim": 32, "ffn_hidden_size": 256, "latents_dim": 4, "audio_latents_dim": 8}
    sizes |= {"text_dim": 48, "time_embed_hidden_size": 64, "time_embed_dim": 64, "rope_inv_freq_len": 4}
    model = MiniMaxH3Model(**sizes, **_common())
    x = [_draw(1, 4, 2, 8, 8), _draw(1, 8, 2, 6)]
    return model, (x, torch.tensor([700.0]), _draw(*TOKENS)), {}


def mochi():
    from comfy.ldm.genmo.joint_model.asymm_models_joint import AsymmDiTJoint

    sizes = {"in_channels": 4, "hidden_size_x": 128, "hidden_size_y": 96, "depth": 2, "num_heads": 4}
    sizes |= {"mlp_ratio_x": 96.0, "use_t5": True, "t5_feat_dim": 48, "qkv_bias": False, "qk_norm": True}
    model = AsymmDiTJoint(**sizes, learn_sigma=False, timestep_scale=1000.0, **_common())
    mask = torch.ones(1, 5, dtype=torch.bool)
    return model, (_draw(1, 4, 2, 8, 8), torch.tensor([0.7]), _draw(*TOKENS), mask), {"num_tokens": 5}


def joyimage():
    from comfy.ldm.joyimage.model import JoyImageTransformer3DModel as JoyImage

    sizes = {"in_channels": 4, "hidden_size": 128, "num_attention_heads": 4, "text_dim": 48, "num_layers": 2}
    model = JoyImage(**sizes, rope_dim_list=[8, 12, 12], **_common())
    return model, (_draw(1, 4, 1, 8, 8), torch.tensor([700.0]), _draw(*TOKENS)), {}


def krea2():
    from comfy.ldm.krea2.model import SingleStreamDiT

    sizes = {"features": 128, "tdim": 32, "txtdim": 64, "heads": 4, "kvheads": 2, "layers": 2, "channels": 4}
    model = SingleStreamDiT(**sizes, txtlayers=3, txtheads=2, txtkvheads=2, **_common())
    return model, (_draw(1, 4, 8, 8), torch.tensor([0.7]), _draw(1, 5, 192)), {}


def ltx2(**more):
    from comfy.ldm.lightricks.av_model import LTXAVModel

    sizes = {"in_channels": 16, "audio_in_channels": 128, "cross_attention_dim": 256, "num_layers": 2}
    sizes |= {"audio_cross_attention_dim": 128, "attention_head_dim": 64, "audio_attention_head_dim": 32}
    sizes |= {"num_attention_heads": 4, "audio_num_attention_heads": 4, "caption_channels": 128}
    sizes |= {"connector_attention_head_dim": 32, "connector_num_attention_heads": 4}
    model = LTXAVModel(**sizes, **more, **_common("image_model"))
    x = [_draw(1, 16, 2, 4, 4), _draw(1, 8, 6, 16)]
    both = (torch.tensor([0.7]), torch.tensor([0.7]))
    return model, (x, both, lambda m: m.preprocess_text_embeds(_draw(1, 128, 128), unprocessed=True)), {}


def ltx23():
    return ltx2(apply_gated_attention=True, cross_attention_adaln=True, connector_apply_gated_attention=True)


def _common(*without):
    own = {"image_model": None, "dtype": torch.float32, "device": "cpu"}
    own["operations"] = comfy.ops.disable_weight_init
    return {name: value for name, value in own.items() if name not in without}


def build(name, path):
    """Write a family's tiny model with rows of uneven sizes; returns the number of its tensors."""
    g, state = _g(0), {}
    for key, tensor in globals()[name]()[0].state_dict().items():
        own = torch.randn(tensor.shape, generator=g)
        if tensor.dim() > 1:
            rows = torch.exp(0.7 * torch.randn(len(tensor), *[1] * (tensor.dim() - 1), generator=g))
            state[key] = own * rows / tensor[0].numel() ** 0.5
            if key.endswith("ff_i.gate.weight"):
                state[key] *= 0.05  # the experts are asked alike
        else:
            state[key] = own * 0.5 + (1.0 if "norm" in key else 0)
    save_file(state, path)
    return len(state)


def difference(name, original, folded):
    """Return how far a folded model's outputs are from the original's, relative to these."""
    model, given, more = globals()[name]()
    model.requires_grad_(False)
    found = []
    for path in (original, folded):
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
        with torch.inference_mode():
            out = model(*(x(model) if callable(x) else _copy(x) for x in given), **more)
        found.append(torch.cat([part.flatten() for part in (out if isinstance(out, list) else [out])]))
    return float((found[1] - found[0]).norm() / found[0].norm())


def _copy(x):
    """Return a copy of an input: some models write into theirs."""
    if isinstance(x, torch.Tensor):
        return x.clone()
    return type(x)(_copy(y) for y in x) if isinstance(x, (list, tuple)) else x
