"""A model and the LoRA deltas on it: patched by dequantize, add, requantize; taken off by putting back."""

import zlib

import torch
from torch import nn

from .patcher_extension import WrapperExecutor


class ModelPatcher:
    load_device = torch.device("cpu")

    def __init__(self, model, source="models/m.safetensors"):
        self.model, self.patches, self.backup, self.wrappers = model, {}, {}, {}
        self.model_options, self.object_patches = {}, {}
        self.cached_patcher_init = (None, (source, {}))

    def clone(self):
        made = ModelPatcher(self.model, self.cached_patcher_init[1][0])
        made.patches, made.backup = dict(self.patches), self.backup
        made.model_options, made.object_patches = dict(self.model_options), dict(self.object_patches)
        made.wrappers = {kind: {k: list(w) for k, w in by.items()} for kind, by in self.wrappers.items()}
        return made

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        self.patches.update(patches)
        return list(patches)

    def add_hook_patches(self, hook, patches, strength_patch=1.0, strength_model=1.0):
        return self.add_patches(patches)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)

    def sample(self, x):
        """As the host samples: every call of the model goes through the wrappers, in inference mode."""
        wrappers = [w for ws in self.wrappers.get("apply_model", {}).values() for w in ws]
        with torch.inference_mode():
            return WrapperExecutor(self.model.diffusion_model, self.model, wrappers)(x.clone())

    def state_dict_for_saving(self):
        self.patch()
        return self.model.diffusion_model.state_dict(prefix="model.diffusion_model.")

    def patch(self):
        for name, delta in self.patches.items():
            layer = self.model.diffusion_model.get_submodule(name.removesuffix(".weight"))
            if name in self.backup:
                continue
            self.backup[name] = layer.weight.to(device="cpu", copy=True)
            dense = layer.convert_weight(layer.weight.to(delta.dtype, copy=True), inplace=True) + delta
            layer.set_weight(dense, inplace_update=False, seed=zlib.crc32(name.encode()))

    def unpatch(self):
        for name, weight in self.backup.items():
            layer = self.model.diffusion_model.get_submodule(name.removesuffix(".weight"))
            layer.weight = nn.Parameter(weight, requires_grad=False)
        self.backup.clear()
