"""Where each layer's algorithm computes: decided from shapes and free memory, before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...formats import Format
from ...formats.algorithms import ALGORITHMS
from ...formats.errors import ConversionError
from ..options.settings import Settings
from .steps import Plan, Step

if TYPE_CHECKING:
    import torch

    from ...quant.placement import Placement


class Placer:
    """Places layers on the settings' device; looks at that device when the first layer needs it.

    Rounding happens in the stream, on the CPU: it is faster there than a trip to a device and back.
    ConversionError for a device that this machine does not have.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._found: tuple[torch.device, int | None] | None = None
        if settings.device not in ("auto", "cpu"):
            self._look()

    def _look(self) -> tuple[torch.device, int | None]:
        if self._found is None:
            device = compute_device(self._settings)
            self._found = device, _budget(self._settings, device)
        return self._found

    def place(self, shape: tuple[int, int], algorithm: str, form: Format) -> tuple[Placement | None, str]:
        """Return in what parts, and on which device, a layer [N, K] is computed; None for rounding."""
        if not ALGORITHMS[algorithm].factors:
            return None, "cpu"
        device, budget = self._look()
        passes = form.passes(self._settings.quip_passes)
        return _place(shape, algorithm, self._settings, budget, passes), str(device)


def compute_device(settings: Settings) -> torch.device:
    """Return the device that the settings name, or the best there is; ConversionError for an absent one."""
    return best_device() if settings.device == "auto" else usable_device(settings.device)


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_device(name: str) -> torch.device:
    """Return the device that ``--device`` names; ConversionError where torch cannot use it here."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConversionError(f"--device {name}: no device has such a name; try cpu, cuda or cuda:1") from e
    kind = getattr(torch, device.type, None)
    there = kind.device_count() if kind is not None and kind.is_available() else 0
    if device.type != "cpu" and (device.index or 0) >= there:
        raise ConversionError(
            f"--device {name}: this machine has no such device, or torch cannot use it; "
            "leave the option out, or use --device cpu"
        )
    return device


def _budget(settings: Settings, device: torch.device) -> int | None:
    """Return the bytes of the device that a layer may take: None without limit, 0 on the CPU."""
    if device.type == "cpu":
        return 0
    import torch

    from ...quant.placement import device_budget

    mode = "aggressive" if settings.low_memory else settings.streaming_mode
    return device_budget(mode, getattr(torch, device.type).mem_get_info(device)[0])


def _place(
    shape: tuple[int, int], algorithm: str, settings: Settings, budget: int | None, passes: int
) -> Placement:
    from ...quant.placement import place

    return place(
        shape,
        algorithm,
        budget,
        checkpointed=settings.quip_checkpointed,
        threshold=settings.quip_checkpoint_threshold,
        segments=settings.quip_checkpoint_segments,
        passes=passes,
    )


def place_again(plan: Plan, settings: Settings, device: str, free: int | None) -> Plan:
    """Return a plan whose layers are computed on other machines.

    device: as it is called there. free: bytes of memory that it has; None for the CPU.
    """
    mode = "aggressive" if settings.low_memory else settings.streaming_mode

    def placed(step: Step) -> Step:
        if step.placement is None or step.format is None:
            return step
        from ...quant.placement import device_budget

        budget = 0 if free is None else device_budget(mode, free)
        passes = step.format.passes(settings.quip_passes)
        return replace(
            step, device=device, placement=_place(step.shape, step.algorithm, settings, budget, passes)
        )

    return replace(plan, steps=tuple(placed(step) for step in plan))


def describe_placement(step: Step) -> str:
    """Return ``cpu``, ``cuda``, ``cuda in 4 parts`` or ``cpu in 3 parts``: for tables."""
    where = step.placement
    if where is None:
        return "cpu"
    device = "cpu" if where.kind == "cpu" else step.device
    rows = step.shape[0]
    parts = -(-rows // where.row_chunk) if where.row_chunk else 1
    return device if parts == 1 else f"{device} in {parts} parts"
