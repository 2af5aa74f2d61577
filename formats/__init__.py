"""What quantized checkpoints hold, layer by layer, format by format. Never loads torch."""
