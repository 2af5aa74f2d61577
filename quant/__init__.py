"""Quantized tensors, their layouts, and the algorithms that choose their values."""
