"""Models of real classes whose inputs can be folded: one row per family, tiny, with uneven channels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers_models import TINY
from peers import peer
from running_models import MODELS, builder, diffusers, output

transformers = peer("transformers")


@dataclass(frozen=True)
class Foldable:
    """A tiny model. inputs: makes a batch. inside: what is folded, and how much of it less its mean.

    preset: named where sizes tell the family apart. run: the outputs to compare. keep_names: diffusers has no
    class that reads it by ComfyUI's.
    """

    build: Callable[[], torch.nn.Module]
    inputs: Callable[[torch.Generator], dict]
    inside: tuple[int, int]
    preset: str = "auto"
    run: Callable[[torch.nn.Module, dict], torch.Tensor] = output
    keep_names: bool = False


def _hidden(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


def _layers(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return _hidden(model.model, batch)


def _tokens(g: torch.Generator) -> dict:
    return {"input_ids": torch.randint(0, 64, (2, 24), generator=g)}


def _encoder(kind: str, **sizes) -> Callable[[], torch.nn.Module]:
    """A function that makes a text encoder of transformers: ``Qwen3Model`` of a ``Qwen3Config``."""

    def build() -> torch.nn.Module:
        cls = getattr(transformers, kind)
        return cls(cls.config_class(**{"vocab_size": 64, **sizes}))

    return build


LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ONE = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128}
_ONE |= {"head_dim": 128}
_T5 = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 2}
_CLIP = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}


def _draw(g: torch.Generator, **shapes) -> dict:
    """Inputs by name: normal of a shape, or what is given as it is."""
    return {k: torch.randn(*v, generator=g) if isinstance(v, tuple) else v for k, v in shapes.items()}


def _time(g: torch.Generator, most: float = 1.0) -> torch.Tensor:
    return torch.rand(1, generator=g) * most


def _chroma(g: torch.Generator) -> dict:
    ids = {"img_ids": torch.rand(12, 3, generator=g), "txt_ids": torch.zeros(5, 3)}
    return {
        **_draw(g, hidden_states=(1, 12, 16), encoder_hidden_states=(1, 5, 48)),
        **ids,
        "timestep": _time(g),
    }


def _flux2(g: torch.Generator) -> dict:
    ids = {"img_ids": torch.rand(1, 12, 4, generator=g), "txt_ids": torch.zeros(1, 5, 4)}
    given = _draw(g, hidden_states=(1, 12, 16), encoder_hidden_states=(1, 5, 48), guidance=_time(g))
    return {**given, **ids, "timestep": _time(g)}


def _sd3(g: torch.Generator) -> dict:
    return _draw(
        g,
        hidden_states=(1, 4, 8, 8),
        encoder_hidden_states=(1, 5, 48),
        pooled_projections=(1, 32),
        timestep=_time(g, 1000),
    )


def _hunyuan(g: torch.Generator) -> dict:
    return _draw(
        g,
        hidden_states=(1, 4, 2, 8, 8),
        encoder_hidden_states=(1, 5, 48),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        pooled_projections=(1, 32),
        timestep=_time(g, 1000).long(),
        guidance=torch.tensor([3500.0]),
    )


def _ltx(g: torch.Generator) -> dict:
    return _draw(
        g,
        hidden_states=(1, 32, 16),
        encoder_hidden_states=(1, 5, 48),
        encoder_attention_mask=torch.ones(1, 5),
        timestep=_time(g, 1000),
        num_frames=2,
        height=4,
        width=4,
    )


def _wan_i2v(g: torch.Generator) -> dict:
    """Inputs whose picture is looked at: what stands before 512 tokens of text."""
    return {**MODELS["wan"][1](g), "encoder_hidden_states": torch.randn(1, 512, 64, generator=g)}


def _wan_t2v(g: torch.Generator) -> dict:
    return {k: v for k, v in MODELS["wan"][1](g).items() if not k.endswith("_image")}


def _lumina(g: torch.Generator) -> dict:
    return _draw(
        g,
        hidden_states=(1, 4, 8, 8),
        encoder_hidden_states=(1, 5, 48),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool),
        timestep=_time(g),
    )


def _latents(g: torch.Generator) -> dict:
    return _draw(g, hidden_states=(1, 4, 8, 8), encoder_hidden_states=(1, 5, 48), timestep=_time(g))


_PIXART = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 48, "cross_attention_dim": 192}


def _pixart(g: torch.Generator) -> dict:
    size = {"resolution": torch.full((1, 2), 64.0), "aspect_ratio": torch.ones(1, 1)}
    return {**_latents(g), "added_cond_kwargs": size}


def _unet() -> torch.nn.Module:
    sizes = {"block_out_channels": (32, 128), "layers_per_block": 1, "transformer_layers_per_block": 1}
    return diffusers.UNet2DConditionModel(**{**TINY["sdxl"][1], **sizes})


def _sdxl(g: torch.Generator) -> dict:
    pooled = _draw(g, text_embeds=(1, 16), time_ids=(1, 6))
    return _draw(
        g,
        sample=(1, 4, 8, 8),
        timestep=_time(g, 1000),
        encoder_hidden_states=(1, 5, 64),
        added_cond_kwargs=pooled,
    )


def _qwen_image21_model() -> torch.nn.Module:
    sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32}
    sizes |= {"num_attention_heads": 4, "context_in_dim": 48, "axes_dims_rope": (8, 12, 12)}
    return diffusers.QwenImage21Transformer2DModel(**sizes)


def _qwen_image21(g: torch.Generator) -> dict:
    slots = torch.tensor([[False] * 5 + [True] * 4])  # each is four tokens of the picture
    return _draw(
        g,
        hidden_states=(1, 16, 16),
        encoder_hidden_states=(1, 5, 48),
        timestep=_time(g),
        img_shapes=[[(1, 4, 4)]],
        img_mask=slots,
    )


def _krea(g: torch.Generator) -> dict:
    return _draw(
        g,
        hidden_states=(1, 12, 16),
        encoder_hidden_states=(1, 5, 3, 64),
        position_ids=torch.rand(17, 3, generator=g) * 4,
        timestep=_time(g),
    )


def _krea_model() -> torch.nn.Module:
    return diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        timestep_embed_dim=32,
        text_hidden_dim=64,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=128,
        axes_dims_rope=(8, 12, 12),
    )


def _diffusers(family: str, inside: tuple[int, int], inputs=None, preset: str = "auto", **sizes) -> Foldable:
    """A family of `running_models`; two blocks where all are in one fold, or the last one gives no text."""
    known = MODELS.get(family)
    build = (lambda: known[0](**sizes)) if known else (lambda: builder(family, **sizes)())
    return Foldable(build, inputs or known[1], inside, preset)


FAMILIES = {
    "flux": _diffusers("flux", (7, 7)),
    "flux2": _diffusers("flux2", (5, 0), _flux2),
    "chroma": _diffusers("chroma", (2, 2), _chroma),
    "qwen-image": _diffusers("qwen-image", (10, 10), preset="qwen-image", num_layers=2),
    "qwen-image-2.1": Foldable(_qwen_image21_model, _qwen_image21, (4, 0)),
    "z-image": _diffusers("z-image", (12, 0)),
    "lumina2": _diffusers("lumina2", (12, 0), _lumina, "lumina-image-2", num_kv_heads=2),
    "sd3": _diffusers("sd3", (11, 11), _sd3),
    "wan": _diffusers("wan", (12, 10), _wan_i2v, num_layers=2),
    "wan2.1-t2v": _diffusers("wan", (12, 10), _wan_t2v, image_dim=None, added_kv_proj_dim=None, num_layers=2),
    "hunyuan-video": _diffusers("hunyuan-video", (7, 7), _hunyuan),
    "ltx-video": _diffusers("ltx-video", (10, 8), _ltx, num_layers=2),
    "auraflow": _diffusers("auraflow", (5, 0), _latents),
    "pixart": _diffusers("pixart", (10, 8), _pixart, **_PIXART),
    "sdxl": Foldable(_unet, _sdxl, (20, 4), "sdxl-unet", keep_names=True),
    "krea2": Foldable(_krea_model, _krea, (6, 0), "krea2"),
    "t5": Foldable(
        _encoder("T5EncoderModel", **_T5, feed_forward_proj="gated-gelu", dropout_rate=0.0),
        _tokens,
        (8, 0),
        "te-t5-xxl",
        _hidden,
    ),
    "qwen3": Foldable(_encoder("Qwen3Model", **LLAMA, head_dim=48), _tokens, (8, 0), "te-qwen3-4b", _hidden),
    # As wide as the real ones, which they are recognised by: no tensor tells the size of their heads.
    "qwen2.5": Foldable(_encoder("Qwen2ForCausalLM", **_ONE, hidden_size=3584), _tokens, (4, 0), run=_layers),
    "mistral": Foldable(
        _encoder("MistralForCausalLM", **_ONE, hidden_size=5120), _tokens, (4, 0), run=_layers
    ),
    "gemma3": Foldable(
        _encoder("Gemma3TextModel", **LLAMA, head_dim=48), _tokens, (8, 0), "te-gemma-3-4b", _hidden
    ),
    "clip": Foldable(_encoder("CLIPTextModelWithProjection", **_CLIP), _tokens, (6, 6), "te-clip-l", _hidden),
}
"""One row per family; each is folded and compared with itself."""


def uneven(family: str) -> torch.nn.Module:
    """The family's model, its channels of sizes that differ by a factor of several, their means not zero."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().eval().requires_grad_(False)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            size = torch.exp(0.7 * torch.randn(p.shape[0], *[1] * (p.dim() - 1)))
            p.copy_(torch.randn_like(p) * size / p[0].numel() ** 0.5)
        else:
            p.copy_(torch.randn_like(p) * 0.5 + (1.0 if "norm" in name else 0))
    return model
