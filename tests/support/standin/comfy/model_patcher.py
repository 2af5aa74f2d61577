"""A model and the LoRA deltas on it: patched by dequantize, add, requantize; taken off by putting back."""

import zlib

from torch import nn


class ModelPatcher:
    def __init__(self, model):
        self.model, self.patches, self.backup = model, {}, {}

    def patch(self):
        for name, delta in self.patches.items():
            layer = self.model.diffusion_model.get_submodule(name)
            if name in self.backup:
                continue
            self.backup[name] = layer.weight.to(device="cpu", copy=True)
            dense = layer.convert_weight(layer.weight.to(delta.dtype, copy=True), inplace=True) + delta
            layer.set_weight(dense, inplace_update=False, seed=zlib.crc32(name.encode()))

    def unpatch(self):
        for name, weight in self.backup.items():
            layer = self.model.diffusion_model.get_submodule(name)
            layer.weight = nn.Parameter(weight, requires_grad=False)
        self.backup.clear()
