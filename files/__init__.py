"""Checkpoint files: safetensors headers, reading, writing."""
