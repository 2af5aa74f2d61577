"""What a quantized file says of itself, and whether that can be right."""
