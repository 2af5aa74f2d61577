"""From a checkpoint's header and the settings to the plan of its conversion."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...files.header import OutputTensor
from ...formats.errors import ConversionError
from ..contract import CONFIG, METADATA_KEY, SCALE, encode_config, largest_group
from ..layers.choice import LayerChoice, choose
from ..layers.rules import LayerRules, layer_rules
from ..layers.selection import NEVER, Decision, could_be_linear, select
from ..lora.merge import merge_notes, settings_merges
from ..options.settings import Settings
from ..presets import Match, assume, detect
from ..stored.companions import StoredQuant, is_marker, standard_name, stored_quant
from .calibration import algorithm_notes, attach_algorithms, open_calibration
from .devices import place_layers
from .merges import attach_merges, left_out
from .steps import Plan, Step


def build_plan(checkpoint: Checkpoint, settings: Settings) -> Plan:
    """Decide what happens to every tensor. Reads nothing but the header.

    ConversionError when nothing would be quantized, for a rotation group or block size that a layer cannot
    have, and for a LoRA that does not fit.
    """
    matches = recognise(checkpoint, settings)
    merges = settings_merges(settings, checkpoint.shapes())
    decisions = select(checkpoint.shapes(), matches, settings.preset_strict, settings.keep_sets)
    rules = layer_rules(settings, layer_names(checkpoint))
    stored = {
        n: q for n in checkpoint.tensors if n.endswith(".weight") and (q := stored_quant(checkpoint, n))
    }
    companions = {name: weight for weight, quant in stored.items() for name in quant.names()}
    steps: list[Step] = []
    for info in checkpoint.tensors.values():
        if info.name in companions or is_marker(info.name):
            continue
        choice = _choice(info, decisions[info.name], rules, settings)
        if choice is None:
            steps.append(Step(info, "drop", decisions[info.name].reason))
        else:
            steps += _steps(checkpoint, info, choice, stored.get(info.name))
    steps = list(attach_merges(steps, merges, [n for n, q in stored.items() if q.scale]))
    quantized = [s for s in steps if s.action == "quantize"]
    calibration = open_calibration(settings, [s.layer_name for s in quantized], checkpoint.shapes())
    steps = list(place_layers(attach_algorithms(steps, calibration, settings), settings))
    notes = (
        *_notes(steps, matches),
        *rules.notes,
        *_overruled(steps, decisions),
        *merge_notes(merges.loras),
        *left_out(steps, merges),
        *algorithm_notes(quantized, calibration, settings),
    )
    plan = Plan(tuple(steps), _metadata(checkpoint, steps, settings), notes, merges.loras, calibration)
    if not plan.quantized:
        raise ConversionError(f"{checkpoint.path}: nothing to quantize: {_why_nothing(plan)}")
    return plan


def layer_names(checkpoint: Checkpoint) -> list[str]:
    """The layers that a user's pattern can name: weights that may be a Linear's, without ``.weight``."""
    shapes = checkpoint.shapes()
    return [name.removesuffix(".weight") for name in shapes if could_be_linear(name, shapes[name])]


def _choice(
    info: TensorInfo, decision: Decision, rules: LayerRules, settings: Settings
) -> LayerChoice | None:
    """What becomes of a tensor; None for one that is removed."""
    if decision.action == "remove":
        return None
    if not could_be_linear(info.name, info.shape):
        return LayerChoice("keep", decision.reason)
    return choose(info, decision, rules.by_layer.get(info.name.removesuffix(".weight")), settings)


def _steps(
    checkpoint: Checkpoint, info: TensorInfo, choice: LayerChoice, quant: StoredQuant | None
) -> Iterator[Step]:
    if choice.action == "keep":
        yield _keep(info, choice.reason)
        if quant:
            yield from _keep_companions(checkpoint, info, quant)
    elif choice.action == "cast":
        companions = _scale_of(checkpoint, info, quant)
        output = OutputTensor(info.name, "F16", info.shape)
        yield Step(info, "cast", choice.reason, (output,), companions=companions)
    else:
        yield _quantize_step(info, choice, _scale_of(checkpoint, info, quant))


def _keep(info: TensorInfo, reason: str, name: str | None = None) -> Step:
    return Step(info, "keep", reason, (OutputTensor(name or info.name, info.dtype, info.shape),))


def _keep_companions(checkpoint: Checkpoint, weight: TensorInfo, quant: StoredQuant) -> Iterator[Step]:
    """A kept quantized layer stays loadable: its companions under today's names, its format as a tensor."""
    for name in quant.names():
        yield _keep(checkpoint.tensors[name], f"belongs to {weight.name}", standard_name(name))
    if quant.config_json:
        data = quant.config_json.encode("utf-8")
        out = OutputTensor(weight.name.removesuffix(".weight") + CONFIG, "U8", (len(data),))
        yield Step(weight, "write", "format of a layer kept as it was", (out,), data=data)


def _quantize_step(info: TensorInfo, choice: LayerChoice, companions: Mapping[str, str]) -> Step:
    layer = choice.format
    assert layer is not None
    name = info.name.removesuffix(".weight")
    shape = (info.shape[0], info.shape[1])
    config = encode_config(layer.config())
    outputs = (
        OutputTensor(info.name, "I8", shape),
        OutputTensor(name + SCALE, "F32", layer.scale_shape(shape)),
        OutputTensor(name + CONFIG, "U8", (len(config),)),
    )
    return Step(info, "quantize", choice.reason, outputs, layer, choice.algorithm, companions, config)


def _scale_of(checkpoint: Checkpoint, info: TensorInfo, quant: StoredQuant | None) -> dict[str, str]:
    """The scale that a stored FP8 weight is read with, by role."""
    if not (quant and quant.scale):
        return {}
    _check_scale(checkpoint.tensors[quant.scale], info)
    return {"scale": quant.scale}


def _check_scale(scale: TensorInfo, weight: TensorInfo) -> None:
    """FP8 weights are dequantized by one scale, or one a row."""
    if scale.numel not in (1, weight.shape[0]) or scale.dtype not in QUANTIZABLE:
        raise ConversionError(
            f"{weight.name}: {weight.dtype} with a scale of shape {list(scale.shape)} cannot be read; "
            f"one scale a tensor or a row can"
        )


def _metadata(checkpoint: Checkpoint, steps: list[Step], settings: Settings) -> dict[str, str]:
    """The source's metadata, less an old layer list: ComfyUI would believe it over the tensors."""
    metadata = {k: v for k, v in checkpoint.metadata.items() if k != METADATA_KEY}
    if settings.save_quant_metadata:
        layers = {s.layer_name: s.layer.config() for s in steps if s.layer}
        layers |= {s.layer_name: json.loads(s.data) for s in steps if s.action == "write"}
        metadata[METADATA_KEY] = json.dumps({"format_version": "1.0", "layers": layers})
    return metadata


def recognise(checkpoint: Checkpoint, settings: Settings) -> list[Match]:
    """The models in the file: those its header shows, the one the settings name, or none."""
    if settings.preset == "none":
        return []
    if settings.preset == "auto":
        return detect(checkpoint.shapes(), checkpoint.metadata)
    try:
        return [assume(settings.preset, checkpoint.shapes())]
    except ValueError as e:
        raise ConversionError(f"--preset: {e}") from e


def _notes(steps: list[Step], matches: list[Match]) -> Iterator[str]:
    for match in matches:
        under = f" under {match.prefix!r}" if match.prefix else ""
        yield f"recognised {match.label}{under}: {', '.join(match.evidence)}"
    prefixes = tuple(match.prefix for match in matches)
    apart = (s for s in steps if NEVER.match(s.name) or (matches and not s.name.startswith(prefixes)))
    for part, count in Counter(s.name.partition(".")[0] for s in apart).items():
        yield f"{part}: {count} tensors outside the recognised models stay as they are"
    layers = [s for s in steps if s.layer]
    rotated = [s for s in layers if s.layer and s.layer.rotation]
    plain = [s for s in layers if not largest_group(s.source.shape[1])]
    if rotated and plain:
        yield (
            f"{len(plain)} layers are not rotated: no group of 256, 64 or 16 divides their columns "
            f"({plain[0].name}, ...)"
        )


def _overruled(steps: list[Step], decisions: Mapping[str, Decision]) -> Iterator[str]:
    """Layers that the preset or the general rule would have kept, and why it would."""
    kept = [s for s in steps if s.action in ("quantize", "cast") and decisions[s.name].action == "keep"]
    if kept:
        yield (
            f"{len(kept)} layers change that would be kept without your patterns "
            f"({kept[0].layer_name}: {decisions[kept[0].name].reason}, ...)"
        )


def _why_nothing(plan: Plan) -> str:
    int8 = sum(s.source.dtype == "I8" for s in plan)
    if int8:
        return f"{int8} of its weights are INT8 already"
    reasons: dict[str, int] = {}
    for step in plan:
        if step.action == "keep":
            reasons[step.reason] = reasons.get(step.reason, 0) + 1
    top = sorted(reasons.items(), key=lambda kv: -kv[1])[:3]
    return ", ".join(f"{n} tensors kept ({reason})" for reason, n in top)
