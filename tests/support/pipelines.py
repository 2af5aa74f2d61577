"""A tiny Flux pipeline of diffusers' and transformers' own classes, with random weights, as a folder."""

from pathlib import Path

import torch
from running_models import flux

WORDS = ("a", "photo", "of", "red", "blue", "house", "cat", "at", "night", "in", "rain")


def tokenizer(length: int):
    """A tokenizer of a few words, with what pipelines ask of one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def flux_pipeline(seed: int = 0):
    """The pipeline: a transformer of one block of each kind, CLIP, T5, and a VAE that halves the sides."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    clip = CLIPTextConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        eos_token_id=1,
    )
    t5 = T5Config(vocab_size=32, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.0,
        scaling_factor=0.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=tokenizer(16),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=tokenizer(32),
        transformer=flux().eval(),
    )


def save_pipeline(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline as `save_pretrained` does; return the folder."""
    flux_pipeline(seed).save_pretrained(folder)
    return folder
