"""A stand-in for ComfyUI's package of this name: its interfaces as the node pack meets them, nothing more."""
