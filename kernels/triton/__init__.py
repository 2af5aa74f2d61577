"""Triton implementations of the ops in `convert_to_quant.kernels`, one module an op.

Imported on the first call with a CUDA, ROCm or XPU tensor, never before: ``import
convert_to_quant.kernels`` loads no Triton. Each module holds a table of configurations, the
kernel, and a launcher with the eager twin's signature, which returns a plan of its launches
(`_planned`); the eager twin is its oracle.
"""
