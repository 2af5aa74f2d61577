"""What real ComfyUI makes of a file."""
