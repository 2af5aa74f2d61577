"""The preset table: text encoders.

Language models keep their vocabulary tables, their output head, their vision and
audio towers and the projectors between them; every Linear of the text blocks is
quantized. In the published Qwen3-VL 8B file that is 252 of 371 layers.

ComfyUI, 0.33 as the latest that was looked at, tells its CLIP models and ByT5 nothing of
quantized layers, alone or inside an all-in-one file: they take integers for weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import fold_tables
from .facts import Fact, Naming, Preset, dim, has, lacks
from .rows import naming, variant

_KEEP = (
    r"\bembed_tokens\b",
    r"\blm_head\b",
    r"\b(visual|vision_model|vision_tower|multi_modal_projector|audio\w*)\.",
)
_BLOCKS = (r"^(model\.)?(language_model\.)?(model\.)?layers\.\d+\.",)

# A T5 checkpoint from its authors holds the decoder too; no diffusion model reads it.
_T5_REMOVE = (r"^decoder\.", r"^lm_head\.")
_T5_KEEP = (r"^shared\.", r"\bembed_tokens\b", r"\brelative_attention_bias\b")
_T5_BLOCKS = (r"^encoder\.block\.\d+\.",)
_T5_Q = "encoder.block.0.layer.0.SelfAttention.q.weight"

_GEMMA = has("model.layers.0.post_feedforward_layernorm.weight")
_LLAMA = has("model.layers.0.post_attention_layernorm.weight")
_QWEN2 = has("model.layers.0.self_attn.k_proj.bias")
_QWEN3 = has("model.layers.0.self_attn.q_norm.weight")
_NO_QK_NORM = lacks("model.layers.0.self_attn.q_norm.weight")
_NO_DEEPSTACK = lacks("visual.deepstack_merger_list.0.norm.weight")


def _hidden(width: int) -> Fact:
    return dim("model.embed_tokens.weight", 1, width)


def _vocabulary(rows: int) -> Fact:
    return dim("model.embed_tokens.weight", 0, rows)


def _moved(key: str) -> str:
    """Return the name under which transformers saves it: the towers side by side under ``model.``."""
    for old, new in (("model.", "model.language_model."), ("visual.", "model.visual.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _transformers(facts: Iterable[Fact]) -> Naming:
    return Naming("transformers", tuple(replace(fact, key=_moved(fact.key)) for fact in facts))


def _language_model(name: str, title: str, *facts: Fact, **more) -> Preset:
    return Preset(
        name=name,
        title=title,
        namings=(naming(*facts), _transformers(facts)),
        blocks=_BLOCKS,
        keep=_KEEP,
        kind="text encoder",
        fold_unasked=True,
        **{"folds": fold_tables.GEMMA if _GEMMA in facts else fold_tables.LLAMA, **more},
    )


def _t5(name: str, title: str, *namings: Naming, **more) -> Preset:
    return Preset(
        name=name,
        title=title,
        namings=namings,
        blocks=_T5_BLOCKS,
        keep=_T5_KEEP,
        remove=_T5_REMOVE,
        kind="text encoder",
        folds=fold_tables.T5,
        fold_unasked=True,
        **more,
    )


def _clip(name: str, title: str, *facts: Fact, **more) -> Preset:
    return Preset(
        name=name,
        title=title,
        namings=(naming(*facts),),
        blocks=(r"^text_model\.encoder\.layers\.\d+\.",),
        keep=(r"\b(token_embedding|position_embedding)\b", r"^text_projection\b"),
        kind="text encoder",
        stock_since="",
        folds=fold_tables.CLIP,
        **more,
    )


T5 = (
    _t5(
        "te-t5-xxl",
        "T5-XXL",
        naming(dim(_T5_Q, 1, 4096), dim("shared.weight", 0, 32128)),
        naming(dim(_T5_Q, 1, 4096), dim("encoder.embed_tokens.weight", 0, 32128)),
        aliases=("t5xxl", "t5-xxl", "t5"),
    ),
    _t5(
        "te-umt5-xxl",
        "umT5-XXL",
        naming(
            dim(_T5_Q, 1, 4096),
            has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ),
        aliases=("umt5xxl", "umt5-xxl", "umt5"),
    ),
    _t5(
        "te-byt5-small-glyph",
        "ByT5-small (glyph encoder)",
        naming(dim(_T5_Q, 1, 1472)),
        aliases=("byt5",),
        stock_since="",
    ),
)

# The open_clip names of CLIP-G (resblocks, in_proj_weight) have no row on purpose:
# ComfyUI renames those tensors while loading, and a scale beside them would be lost.
CLIP = (
    _clip(
        "te-clip-l",
        "CLIP-L",
        has("text_model.encoder.layers.0.mlp.fc1.weight"),
        dim("text_model.embeddings.token_embedding.weight", 1, 768),
        aliases=("clip-l",),
    ),
    _clip(
        "te-clip-g",
        "CLIP-G",
        has("text_model.encoder.layers.30.mlp.fc1.weight"),
        dim("text_model.embeddings.token_embedding.weight", 1, 1280),
        aliases=("clip-g",),
    ),
)

LANGUAGE_MODELS = (
    _language_model("te-gemma-2-2b", "Gemma 2 2B", _GEMMA, _hidden(2304), aliases=("gemma-2",)),
    _language_model("te-gemma-3-4b", "Gemma 3 4B", _GEMMA, _hidden(2560)),
    # The two 12B models differ in their vocabulary only.
    _language_model("te-gemma-3-12b", "Gemma 3 12B", _GEMMA, _hidden(3840), _vocabulary(262208)),
    _language_model("te-gemma-4-12b", "Gemma 4 12B", _GEMMA, _hidden(3840), _vocabulary(262144), folds=()),
    _language_model(
        "te-llama-3",
        "Llama 3 8B",
        _LLAMA,
        _hidden(4096),
        _NO_QK_NORM,
        variants=(
            variant("te-llama-3.1-8b", _vocabulary(128256)),
            variant("te-llava-llama-3-8b", _vocabulary(128320)),
        ),
        aliases=("llama", "llama-3"),
    ),
    _language_model("te-ministral-3-3b", "Ministral 3 3B", _LLAMA, _hidden(3072), aliases=("ministral",)),
    _language_model(
        "te-mistral-small-3",
        "Mistral Small 3 24B",
        _LLAMA,
        _hidden(5120),
        _NO_QK_NORM,
        variants=(
            variant("te-mistral-small-3-24b", has("model.layers.39.post_attention_layernorm.weight")),
            variant("te-mistral-small-3-24b-30l", lacks("model.layers.39.post_attention_layernorm.weight")),
        ),
        aliases=("mistral",),
    ),
    _language_model("te-qwen2.5-3b", "Qwen2.5 3B", _QWEN2, _hidden(2048)),
    _language_model("te-qwen2.5-vl-7b", "Qwen2.5-VL 7B", _QWEN2, _hidden(3584), aliases=("qwen2.5-vl",)),
    _language_model("te-qwen3-0.6b", "Qwen3 0.6B", _QWEN3, _hidden(1024)),
    _language_model(
        "te-qwen3-4b",
        "Qwen3 4B",
        _QWEN3,
        _hidden(2560),
        lacks("model.layers.0.post_feedforward_layernorm.weight"),
        _NO_DEEPSTACK,
    ),
    # SenseNova-U1.5 is this model with a second set of weights; it has a row of its own.
    _language_model(
        "te-qwen3-8b",
        "Qwen3 8B",
        _QWEN3,
        _hidden(4096),
        _NO_DEEPSTACK,
        lacks("model.layers.0.self_attn.q_proj_mot_gen.weight"),
    ),
    _language_model(
        "te-qwen3-vl-4b",
        "Qwen3-VL 4B",
        has("visual.deepstack_merger_list.0.norm.weight"),
        dim("visual.merger.linear_fc2.weight", 0, 2560),
        _QWEN3,
    ),
    # HiDream-O1 is this model with image layers added; it has a row of its own.
    _language_model(
        "te-qwen3-vl-8b",
        "Qwen3-VL 8B",
        has("visual.deepstack_merger_list.0.norm.weight"),
        dim("visual.merger.linear_fc2.weight", 0, 4096),
        _QWEN3,
        aliases=("qwen3-vl",),
    ),
    _language_model(
        "te-qwen3-vl-32b-50l",
        "Qwen3-VL 32B (50 layers)",
        has("visual.deepstack_merger_list.0.norm.weight"),
        _hidden(5120),
    ),
)

# The experts of a layer are two banks; without "model." its names are ComfyUI's own, for Lens.
MIXTURES = (
    Preset(
        name="te-gpt-oss-20b",
        title="gpt-oss 20B",
        namings=(naming(has("layers.0.self_attn.sinks"), has("layers.0.mlp.experts.gate_up_proj.weight")),),
        blocks=_BLOCKS,
        keep=_KEEP,
        kind="text encoder",
        aliases=("gpt-oss",),
        stock_since="0.33",
    ),
)

TEXT_ENCODERS = (*T5, *CLIP, *LANGUAGE_MODELS, *MIXTURES)
