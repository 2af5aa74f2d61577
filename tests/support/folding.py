"""Models with recorded inputs whose channels are uneven, and their checkpoints folded in floats."""

from pathlib import Path

import torch
from models import save
from safetensors.torch import load_file

from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.converter.plan.steps import Plan
from convert_to_quant.converter.quantize.measure import with_folds
from convert_to_quant.converter.quantize.source import read_weight
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import calibrate
from convert_to_quant.quant.calibration import save as save_calibration


def record(model: torch.nn.Module, batches: list[dict], path: Path) -> Path:
    """Write what the layers of a model see."""
    calibrate(model, batches, path, tokens=512)
    return path


def folded(path: Path, calibration: Path, **options) -> tuple[dict[str, torch.Tensor], Plan]:
    """The tensors of a checkpoint as its conversion folds them, in float32, and the plan."""
    settings = Settings(
        input_file=str(path), calibration_data=str(calibration), **{"fold": "auto", **options}
    )
    with open_checkpoint(path) as checkpoint:
        plan = with_folds(build_plan(checkpoint, settings), checkpoint)
        steps = [s for s in plan if s.outputs]
        return {s.name: read_weight(checkpoint, s, plan.folds).float() for s in steps}, plan


def merged(path: Path, lora: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint with a LoRA in them, in float32, nothing folded."""
    settings = Settings(input_file=str(path), merge_lora_path=str(lora))
    with open_checkpoint(path) as checkpoint:
        steps = [s for s in build_plan(checkpoint, settings) if s.outputs]
        return {s.name: read_weight(checkpoint, s).float() for s in steps}


def save_model(model: torch.nn.Module, path: Path) -> Path:
    """Write a model's weights under its own names, those that share memory once each."""
    return save(path, {n: t.contiguous().clone() for n, t in model.state_dict().items()}, {"format": "pt"})


def measured(model, path):
    """A calibration of made inputs for every two-dimensional weight of a file."""
    g = torch.Generator().manual_seed(3)
    records = {}
    for name, weight in load_file(model).items():
        if name.endswith(".weight") and weight.dim() == 2:
            x = torch.randn(64, weight.shape[1], generator=g)
            x[:, ::40] *= 8
            x += torch.randn(weight.shape[1], generator=g)
            records[name.removesuffix(".weight")] = LayerStats(x.bfloat16(), x.abs().amax(0), x.mean(0), 0.1)
    return save_calibration(path, records)
