"""``ctq edit``: a copy of a quantized file with a few things changed."""
