"""The loader of diffusion models: the tests' small model, whatever the file."""

from types import SimpleNamespace

import torch
from hosted_model import Transformer
from safetensors.torch import load_file

from . import ops
from .model_patcher import ModelPatcher


class BaseModel(SimpleNamespace):
    """Weakly referenced, as the host's."""


def load_diffusion_model(path):
    model = Transformer(ops.pick_operations(None, torch.float32))
    state = {n.removeprefix("model.diffusion_model."): t for n, t in load_file(path).items()}
    model.load_state_dict(state)
    return ModelPatcher(BaseModel(diffusion_model=model.requires_grad_(False)), path)


def load_bypass_lora_for_models(model, clip, lora, strength_model, strength_clip):
    raise NotImplementedError
