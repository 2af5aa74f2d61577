"""Which layers are quantized, and how each of them is stored."""
