"""``from_single_file`` of diffusers' models: the folds of the file, which its quantizers are not told."""

from functools import wraps
from pathlib import Path
from typing import Any

from ..quant.runtime.adapters import remember_folds
from .stored import folds_in

_OURS = "_of_convert_to_quant"


def watch_single_files() -> None:
    """Let models that diffusers reads from folded files remember the folds; again changes nothing more."""
    from diffusers.loaders.single_file_model import FromOriginalModelMixin as Mixin

    stock = Mixin.__dict__["from_single_file"]
    if hasattr(stock, _OURS) or not isinstance(stock, classmethod):
        return
    read = stock.__func__

    @wraps(read)
    def from_single_file(cls: type, pretrained_model_link_or_path_or_dict: Any = None, **kwargs: Any) -> Any:
        model = read(cls, pretrained_model_link_or_path_or_dict, **kwargs)
        file = pretrained_model_link_or_path_or_dict
        if isinstance(file, str | Path) and str(file).endswith(".safetensors") and Path(file).is_file():
            folds = folds_in([Path(file)])
            remember_folds(model, folds)
            if getattr(model, "hf_quantizer", None) is not None:
                model.hf_quantizer.metadata = folds
        return model

    made: Any = classmethod(from_single_file)
    setattr(made, _OURS, True)
    Mixin.from_single_file = made
