"""One layer: its weight is read, folded, quantized, and compared with what was written."""
