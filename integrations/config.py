"""What a person asks for when another library quantizes a model while loading it."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from ..formats import ConversionError
from ..formats.choose import DEFAULT, chosen


class Method(str, Enum):
    """The name under which the libraries know us. They ask for `.value`, as of their own names."""

    CTQ = "ctq"


class CtqConfig:
    """How a model is quantized, for ``from_pretrained(..., quantization_config=CtqConfig(...))``.

    format, scaling_mode, block_size: as the options of a conversion. rotation: "auto" is the largest ConvRot
    group that divides a layer's columns; or a group, or 0 for none.
    preset: which model this is, and so which layers are kept: "auto" recognises it, "none" is the general
    rule; preset_strict: also keep the modulation layers of every block.
    skip: more layers to keep; include: layers to quantize whatever the preset says. Both are patterns on
    module names, as in `convert_to_quant.runtime.quantize_model`.
    calibration: a file of `calibrate` or the ComfyUI recorder: layers with a record use LDLQ. It is not
    written into ``config.json``.

    A model or file that is quantized already is read as it is stored; the fields do not matter then.
    ConversionError for a format or granularity that does not exist.
    """

    def __init__(
        self,
        format: str = DEFAULT,
        scaling_mode: str | None = None,
        block_size: int = 128,
        rotation: int | str = "auto",
        preset: str = "auto",
        preset_strict: bool = False,
        skip: Sequence[str] = (),
        include: Sequence[str] = (),
        calibration: str | None = None,
        quant_method: str = Method.CTQ.value,
    ):
        if quant_method != Method.CTQ.value:
            raise ConversionError(f"CtqConfig reads quant_method {Method.CTQ.value!r}, not {quant_method!r}")
        try:
            chosen(format, scaling_mode)
        except ValueError as e:
            raise ConversionError(f"CtqConfig: {e}") from e
        self.quant_method = Method.CTQ
        self.format, self.scaling_mode, self.block_size = format, scaling_mode, block_size
        self.rotation, self.preset, self.preset_strict = rotation, preset, preset_strict
        self.skip = [skip] if isinstance(skip, str) else list(skip)
        self.include = [include] if isinstance(include, str) else list(include)
        self.calibration = None if calibration is None else str(calibration)

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make the config of a ``config.json``; ConversionError names a key that it does not have."""
        try:
            made = cls(**config_dict)
        except TypeError as e:
            raise ConversionError(
                f"quantization_config: {e}; was the model saved by a newer convert_to_quant?"
            ) from e
        unused = made.update(**kwargs)
        return (made, unused) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        fields = {k: v for k, v in self.__dict__.items() if k != "calibration"}
        return {**copy.deepcopy(fields), "quant_method": self.quant_method.value}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return `to_dict`."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the fields that there are; return the other arguments."""
        for name in [k for k in kwargs if k in self.__dict__]:
            setattr(self, name, kwargs.pop(name))
        return kwargs

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return the fields that matter to loading what is quantized already: none."""
        return {}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CtqConfig) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.__dict__.items() if k != "quant_method")
        return f"CtqConfig({given})"
