"""The Python face of the converter."""

import difflib
from typing import Any

from .convert import convert
from .report import ConversionReport
from .settings import Settings, keywords


def convert_to_int8(input_file: str, output_file: str | None = None, **options: Any) -> ConversionReport:
    """Convert a safetensors checkpoint to one with INT8 weights that stock ComfyUI loads.

    input_file: a ``.safetensors`` file, a ``*.safetensors.index.json`` or a folder of shards.
    output_file: the file to write; by default beside the input, named after the format.
    options: the command line's options as keywords (see `converter.settings.Settings`), among them
        comfy_quant, scaling_mode="row"|"tensor"|"block", block_size=128, convrot=True|False,
        convrot_group_size="auto"|int, verify=True, report_quality=False.

    Returns a ConversionReport: for each layer its format, SQNR and bytes. Raises ConversionError with a
    message for people when anything is wrong, TypeError for an unknown keyword (naming the nearest),
    ValueError for a value an option cannot have. Interrupted, the same call goes on where it was.

        report = convert_to_int8("model.safetensors", comfy_quant=True)
        print(report.summary())
    """
    known = keywords()
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise TypeError(f"convert_to_int8() got an unexpected keyword argument {name!r}{hint}")
    return convert(Settings(input_file=str(input_file), output_file=_text(output_file), **options))


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
