"""A diffusers pipeline, run to record one of its models: the denoiser, or a text encoder."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...formats.errors import ConversionError
from .runner import Runs

DENOISERS = ("transformer", "unet", "prior", "decoder")
"""Names that pipelines give the model that runs at each step; the first that is there is recorded."""

_ENCODER = "text_encoder"


class Pipeline:
    """A pipeline and the component of it that is recorded.

    ConversionError where diffusers is missing, for a pipeline that cannot be loaded or needs more than a
    prompt, and for a component that it does not have.
    """

    def __init__(self, folder: Path, component: str | None, runs: Runs) -> None:
        self._pipe, self._runs = _load(folder, runs), runs
        models = {k: m for k, m in self._pipe.components.items() if isinstance(m, nn.Module)}
        name = component or next((n for n in DENOISERS if n in models), "")
        if name not in models:
            raise ConversionError(
                f"{folder}: {f'no model {component!r}' if component else 'no denoiser'} in this pipeline; "
                f"--component names one of {', '.join(sorted(models)) or 'none'}"
            )
        self.model: nn.Module = models[name]
        self.called = self.model
        self.title = f"{name} ({type(self.model).__name__}) of {type(self._pipe).__name__}"
        if getattr(self.model, "hf_quantizer", None) is not None:
            raise ConversionError(f"{folder}: {self.title} is quantized; record with the float model")
        encodes = name.startswith(_ENCODER)
        if encodes and not hasattr(self._pipe, "encode_prompt"):
            raise ConversionError(
                f"{folder}: {type(self._pipe).__name__} encodes no prompt by itself; record this encoder "
                "from a folder of its own, as a transformers model"
            )
        self._call = self._pipe.encode_prompt if encodes else self._pipe
        self._takes = inspect.signature(self._call if encodes else type(self._pipe).__call__).parameters
        self._refuse_what_it_does_not_take(encodes)

    def _refuse_what_it_does_not_take(self, encodes: bool) -> None:
        given = {**self._arguments("", 0), **(self._images(0) if not encodes else {})}
        asked = {"--steps": self._runs.steps, "--size": self._runs.sizes, "--frames": self._runs.frames}
        fields = {"--steps": "num_inference_steps", "--size": "height", "--frames": "num_frames"}
        for flag, value in asked.items():
            if value and (encodes or fields[flag] not in self._takes):
                raise ConversionError(f"{flag} means nothing to {self.title}; leave it out")
        needed = [
            n
            for n, p in self._takes.items()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n != "self"
        ]
        missing = [n for n in needed if n not in given]
        if missing or "prompt" not in self._takes:
            raise ConversionError(
                f"{type(self._pipe).__name__} needs {', '.join(missing) or 'more'} beside a prompt; "
                "record it in Python with convert_to_quant.quant.calibration.Recorder"
            )

    def run(self, prompt: str, number: int) -> None:
        """Make an image or video from the prompt, or encode it; ConversionError where the pipeline fails."""
        images = {} if self._call is not self._pipe else self._images(number)
        try:
            self._call(**self._arguments(prompt, number), **images)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # other people's code may raise anything
            raise ConversionError(
                f"{self.title} failed on prompt {number + 1}: {type(e).__name__}: {e}"
            ) from e

    def _arguments(self, prompt: str, number: int) -> dict[str, Any]:
        """Return what a prompt is given as, of what the call takes: its variants need not have a default."""
        values: dict[str, Any] = {"prompt": prompt}
        required = [n for n, p in self._takes.items() if p.default is p.empty]
        values |= {n: prompt for n in required if n in ("prompt_2", "prompt_3", "prompt_4")}
        if self._call is not self._pipe:
            own: Mapping[str, Any] = {
                "device": self._runs.device,
                "num_images_per_prompt": 1,
                "do_classifier_free_guidance": False,
            }
            values |= {n: v for n, v in own.items() if n in required or n == "device"}
        return {n: v for n, v in values.items() if n in self._takes}

    def _images(self, number: int) -> dict[str, Any]:
        """Return what an image or video is to be, of what the call takes."""
        values: dict[str, Any] = {
            "generator": torch.Generator("cpu").manual_seed(self._runs.seed + number),
            "output_type": "latent",  # nothing is decoded
            "num_inference_steps": self._runs.steps,
            "num_frames": self._runs.frames,
        }
        if self._runs.sizes:
            width, height = self._runs.sizes[number % len(self._runs.sizes)]
            values |= {"width": width, "height": height}
        return {n: v for n, v in values.items() if v is not None and n in self._takes}


def _load(folder: Path, runs: Runs) -> Any:
    try:
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging
    except (ImportError, RuntimeError) as e:
        raise ConversionError(
            "a pipeline is run by diffusers: pip install 'convert-to-quant-toolkit[diffusers]'"
        ) from e
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # such as a line for each prompt that an encoder cuts
    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder, dtype=runs.dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as e:  # a damaged folder may end in anything
        raise ConversionError(f"{folder}: diffusers cannot load it: {type(e).__name__}: {e}") from e
    pipe.set_progress_bar_config(disable=True)
    if runs.offload:
        pipe.enable_model_cpu_offload(device=runs.device)
    else:
        pipe.to(runs.device)
    return pipe
