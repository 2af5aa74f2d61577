"""Import paths that ComfyUI users know."""
