"""What the words on the page of a verification mean; ``{threshold}`` is in dB."""

TERMS = {
    "weight dB": (
        "Signal to quantization noise ratio (SQNR) of a weight: 10 log10(|W|² / |W - Q|²), with W the "
        "original and Q what the file holds, over all rows. 6 dB more is half the error. INT8 per row "
        "keeps about 40 dB, FP8 about 30, 4 bits about 20; below 3 dB is noise."
    ),
    "threshold": "The weight dB below which a layer fails: {threshold:g}. --threshold sets it.",
    "wrong": (
        "Why a layer fails. Besides the threshold, each row and each scale is held against the least "
        "error that the format allows with that scale: rounding to nearest has just that, calibrated "
        "rounding a few times as much, a damaged row far more."
    ),
    "family": "The layers that differ only in the number of their block, which is written N.",
    "contract": (
        "What ComfyUI needs to read a layer: names, dtypes and shapes of its tensors, its comfy_quant."
    ),
    "kept tensors": (
        "Tensors that are not quantized, compared byte for byte. A change is no fault where the "
        "file's record (convert_to_quant in its header) says that it was meant, and the bytes are "
        "those that were written."
    ),
    "repair": "What ctq edit does about it.",
}
"""Of every page."""

OUTPUT_TERMS = {
    "W8A8 dB, W8A16 dB": "SQNR of a layer's output on recorded inputs: rounded to INT8, and exact.",
}
"""Of pages with recorded inputs."""
