"""Checkpoints in, checkpoints out: plan, read, quantize, write, check; and the command line."""
