"""``ctq verify``: a quantized file against its original."""
