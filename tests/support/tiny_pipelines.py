"""A whole Flux pipeline and a language model with random weights, saved as the libraries save them."""

from functools import cache
from pathlib import Path

import torch
from diffusers_models import TINY, diffusers
from peers import peer

transformers = peer("transformers")


@cache
def _letters():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def letters(longest: int):
    """A tokenizer of single letters."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_letters(),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=longest,
    )


def save_flux_pipeline(folder: Path) -> Path:
    """Write a FluxPipeline of a few thousand weights, with both of its text encoders; return the folder."""
    torch.manual_seed(0)
    clip = transformers.CLIPTextConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=2,
    )
    t5 = transformers.T5Config(vocab_size=32, d_model=48, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
    name, sizes = TINY["flux"]
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=letters(77),
        text_encoder_2=transformers.T5EncoderModel(t5),
        tokenizer_2=letters(64),
        transformer=getattr(diffusers, name)(**sizes),
    )
    pipe.save_pretrained(folder)
    return folder


def save_wan_pipeline(folder: Path) -> Path:
    """Write a WanPipeline of a few thousand weights; return the folder."""
    torch.manual_seed(0)
    t5 = transformers.UMT5Config(vocab_size=32, d_model=48, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    name, sizes = TINY["wan"]
    pipe = diffusers.WanPipeline(
        tokenizer=letters(512),
        text_encoder=transformers.UMT5EncoderModel(t5),
        transformer=getattr(diffusers, name)(**sizes),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def save_language_model(folder: Path) -> Path:
    """Write a Qwen3 of two layers and its tokenizer; return the folder."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    letters(64).save_pretrained(folder)
    return folder
