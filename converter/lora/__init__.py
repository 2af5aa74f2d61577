"""LoRA files merged into a checkpoint's weights before they are quantized.

keys     names of tensors in LoRA files: which module, which role there
names    the checkpoint's layers by every name a LoRA file may use for them
adapter  one module of a LoRA file: its kind, its shape, its alpha
file     a LoRA file as a list of adapters
merge    which adapters meet which tensors, decided from headers alone
delta    the arithmetic, in float32
directions  what a LoRA reads from a layer's inputs, for calibration
"""
