"""Pictures of a pipeline, made with the original weights and with quantized ones, and how far they differ.

report      what was measured, without torch
cases       prompts, seeds and sizes, and the edge cases
pipeline    a diffusers pipeline: loaded, given other weights, run
metrics     PSNR and SSIM
perceptual  LPIPS, where its package and weights are
run         the comparison
"""
