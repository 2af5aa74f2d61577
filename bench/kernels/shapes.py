"""Linear layers of published diffusion transformers, as (N, K, ConvRot group, models).

N is out_features, K in_features; ordered by their share of the FLOPs of the models listed.
"""

M = (1, 16, 256, 1024, 4096, 16384)

LINEARS = (
    (3072, 3072, 256, "wan2.2-5b, qwen-image, flux1"),
    (55296, 6144, 256, "flux2-dev"),
    (5120, 5120, 256, "wan2.1-14b"),
    (36864, 4096, 256, "flux2-klein-9b"),
    (4096, 16384, 256, "ltx-2.3, flux2-klein-9b"),
    (16384, 6144, 256, "krea2"),
    (10240, 3840, 256, "z-image"),
    (12288, 3072, 256, "qwen-image, flux1"),
    (3072, 12288, 256, "qwen-image, flux1"),
    (28672, 5376, 256, "minimax-h3"),
    (4096, 4096, 256, "ltx-2.3, flux2-klein-9b"),
    (21504, 3072, 256, "flux1"),
    (10240, 1280, 256, "sdxl"),
    (14336, 3072, 256, "wan2.2-5b"),
    (3072, 14336, 256, "wan2.2-5b"),
    (21504, 5376, 256, "minimax-h3"),
    (1280, 1280, 256, "sdxl"),
    (3072, 15360, 256, "flux1"),
    (6144, 6144, 256, "krea2, flux2-dev"),
    (6144, 24576, 256, "flux2-dev"),
    (11520, 3840, 256, "z-image"),
    (16384, 4096, 256, "ltx-2.3"),
    (13824, 5120, 256, "wan2.1-14b"),
    (5120, 13824, 256, "wan2.1-14b"),
    (6144, 16384, 256, "krea2"),
    (3840, 10240, 256, "z-image"),
    (5376, 14336, 256, "minimax-h3"),
    (1280, 5120, 256, "sdxl"),
    (24576, 4096, 256, "flux2-klein-9b"),
    (5376, 7168, 256, "minimax-h3"),
    (2048, 4096, 256, "ltx-2.3"),
    (9216, 3072, 256, "flux1"),
    (3840, 3840, 256, "z-image"),
    (36864, 6144, 256, "flux2-dev"),
    (5120, 640, 64, "sdxl"),
    (4096, 12288, 256, "flux2-klein-9b"),
    (12288, 4096, 256, "flux2-klein-9b"),
    (640, 640, 64, "sdxl"),
    (1536, 6144, 256, "krea2"),
    (18432, 6144, 256, "flux2-dev"),
    (6144, 18432, 256, "flux2-dev"),
    (640, 2560, 256, "sdxl"),
    (4096, 2048, 256, "ltx-2.3"),
    (1280, 2048, 256, "sdxl"),
)

LDLQ = ((4096, 4096), (3072, 12288))
"""Weights whose whole LDLQ, Hessian given, is timed."""

SHORT = ((3072, 3072), (12288, 3072), (3072, 12288), (5120, 5120), (640, 640))
"""(N, K) of --short."""

TINY = ((48, 64, 64, "none"), (64, 48, 16, "none"))
"""Runs all of the bench's code in seconds, on a CPU too; its figures mean nothing."""
