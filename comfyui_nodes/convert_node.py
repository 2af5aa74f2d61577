"""The node that converts a checkpoint of the models folder."""

import logging
from pathlib import Path
from typing import Any

from . import places
from .converting import ConvertingNode, chosen_calibration, conversion_options, converting_inputs
from .working import converted

logger = logging.getLogger("convert_to_quant.nodes")

KINDS = ("diffusion_models", "checkpoints", "text_encoders")
"""ComfyUI's folders of models that can be converted."""


class ConvertCheckpoint(ConvertingNode):
    """Converts a checkpoint from the models folder to the models folder, tensor by tensor."""

    FUNCTION, OUTPUT_NODE = "convert", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("file",)
    DESCRIPTION = (
        "Converts a checkpoint of the models folder; the new file lies in the same models folder, numbered, "
        "and the loaders list it. Memory stays low whatever the size of the file. Canceled, it goes on where "
        "it stopped when it is queued again."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        usual = {"default": "", "tooltip": "Empty: the source's name, the format."}
        return converting_inputs(checkpoint=(checkpoints(),), filename=("STRING", usual))

    def convert(
        self,
        checkpoint: str,
        filename: str,
        format: str,
        convrot: bool = True,
        calibration_data: str = places.NONE,
        recorded: str | None = None,
    ) -> dict[str, Any]:
        """Convert the file; return the new one's name as loaders take it."""
        kind, _, name = places.relative(checkpoint).partition("/")
        source = places.folders().get_full_path(kind, name) if kind in KINDS and name else None
        if source is None:
            raise ValueError(f"there is no checkpoint {checkpoint!r}; choose one from the list")
        folder = places.folders().get_folder_paths(kind)[0]
        target = places.new_file(filename.strip() or f"{Path(name).stem}-{format}", folder)
        options = conversion_options(format, convrot, chosen_calibration(recorded or calibration_data))
        logger.info("%s", converted(Path(source), target, options))
        made = target.relative_to(Path(folder).resolve()).as_posix()
        return {"ui": {"text": [f"{kind}/{made}"]}, "result": (made,)}


def checkpoints() -> list[str]:
    """Return the safetensors files of the models folders, with the folder before the name."""
    found = places.folders()
    return [
        f"{kind}/{name}".replace("\\", "/")
        for kind in KINDS
        for name in found.get_filename_list(kind)
        if name.endswith(".safetensors")
    ]
