"""One layer: its weight is read, quantized, and compared with what was written."""
