"""From a checkpoint's header and the settings to the plan of its conversion."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...files.header import OutputTensor
from ...folding.inputs import by_tensor
from ...formats import bank, companion_suffixes
from ...formats.config import encode_config
from ...formats.convrot import PREFERRED_GROUPS, largest_group
from ...formats.errors import ConversionError
from ...formats.names import CONFIG, INPUT_SCALE, METADATA_KEY, OLD_NAMES, tensor_name
from ..layers import embeddings
from ..layers.choice import choose
from ..layers.recast import recast
from ..layers.rules import LayerRules, layer_rules
from ..layers.selection import NEVER, Decision, could_be_linear, names_vocabulary, not_read, select
from ..lora.merge import Merge, Merges, merge_notes, settings_merges
from ..options import recipe
from ..options.settings import Settings
from ..options.values import KEEP
from ..presets import Match, assume, detect
from ..stored import record
from ..stored.companions import StoredQuant, is_marker, standard_name, stored_quant
from .calibration import (
    Calibration,
    algorithm_notes,
    layer_algorithm,
    layer_extras,
    open_calibration,
)
from .devices import Placer
from .effects import idle_options
from .folds import fold_notes, inputs_to_fold
from .merges import left_out, merged_note, merges_of
from .naming import name_for_output
from .not_a_model import require_model
from .recorded import planned
from .steps import LEFT_OVER, Plan, Step, layer_outputs

_SMALL = 1 << 17
"""Elements below which a folded matrix is a table of vectors, not a weight."""

NO_MIX: Mapping[str, str] = {}
"""All layers have the settings' format."""


def build_plan(checkpoint: Checkpoint, settings: Settings, formats: Mapping[str, str] = NO_MIX) -> Plan:
    """Decide what happens to every tensor, under the names of the output. Reads nothing but the header.

    formats: the format of single layers, by layer, where that is not the settings' for all; "keep" leaves a
    layer as it is.

    ConversionError when nothing would be quantized, for a rotation group or block size that a layer cannot
    have, and for a LoRA that does not fit.
    """
    require_model(checkpoint, settings)
    named = name_for_output(checkpoint, settings)
    checkpoint = named.checkpoint
    shapes = checkpoint.shapes()
    matches = recognise(checkpoint, settings)
    merges = settings_merges(settings, shapes)
    decisions = select(
        shapes, matches, settings.preset_strict, settings.keep_sets, settings.force, settings.embeddings
    )
    rules = layer_rules(settings, layer_names(checkpoint))
    stored = _stored(checkpoint)
    companions = {name for quant in stored.values() for name in quant.names()}
    own = [t for t in checkpoint.tensors.values() if t.name not in companions and not is_marker(t.name)]
    chosen = {
        t.name: Decision("keep", BLOCKS_OF_FP8)
        if _has_block_scales(checkpoint, stored.get(t.name))
        else recast(t, _choice(t, decisions[t.name], rules, settings, formats), settings)
        for t in own
    }
    asked = {
        _layer(name): c.algorithm or settings.algorithm
        for name, c in chosen.items()
        if c.action == "quantize"
    }
    calibration = open_calibration(settings, list(asked), shapes)
    scaled = frozenset(n for n, q in stored.items() if q.scale)
    inputs = inputs_to_fold(checkpoint, settings, matches, chosen, scaled, calibration)
    folded = frozenset(by_tensor(inputs))
    steps = tuple(_Steps(checkpoint, settings, chosen, stored, merges, calibration, asked, scaled, folded))
    notes = (
        *named.notes,
        *_notes(steps, matches, settings.preset == "auto"),
        *rules.notes,
        *_overruled(steps, decisions),
        *merge_notes(merges.loras),
        *left_out(steps, merges),
        *algorithm_notes(asked, calibration),
        *fold_notes(checkpoint, settings, matches, calibration, inputs),
    )
    metadata = {**_metadata(checkpoint, steps, settings), **named.metadata}
    plan = Plan(steps, metadata, notes, merges.loras, calibration, inputs=inputs)
    names = Counter(o.name for o in plan.outputs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConversionError(f"{checkpoint.path}: two tensors of the output would be named {twice[0]!r}")
    if not plan.quantized:
        raise ConversionError(f"{checkpoint.path}: nothing to quantize: {_why_nothing(plan)}")
    return replace(plan, notes=(*plan.notes, *idle_options(settings, plan, shapes, matches)))


def layer_names(checkpoint: Checkpoint) -> list[str]:
    """Return the layers that a pattern can name: weights that may be a Linear's, without ``.weight``."""
    shapes = checkpoint.shapes()
    return [_layer(name) for name in shapes if could_be_linear(name, shapes[name])]


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _stored(checkpoint: Checkpoint) -> dict[str, StoredQuant]:
    weights = (n for n in checkpoint.tensors if n.endswith(".weight"))
    return {n: q for n in weights if (q := stored_quant(checkpoint, n))}


BLOCKS_OF_FP8 = "stored with scales of blocks (mxfp8)"
"""Why an FP8 weight is kept whose scale is no float."""


def _has_block_scales(checkpoint: Checkpoint, quant: StoredQuant | None) -> bool:
    """Tell an FP8 weight that only its own format can read: mxfp8."""
    return (
        quant is not None and bool(quant.scale) and checkpoint.tensors[quant.scale].dtype not in QUANTIZABLE
    )


def _choice(
    info: TensorInfo, decision: Decision, rules: LayerRules, settings: Settings, formats: Mapping[str, str]
) -> Decision:
    """Decide what becomes of a tensor."""
    mixed = formats.get(_layer(info.name))
    if mixed == KEEP:
        return Decision("keep", "kept, for there is room for it")
    if decision.action == "quantize" and names_vocabulary(_layer(info.name)):
        return embeddings.stored_table(info, decision, settings)
    if decision.action == "remove" or not could_be_linear(info.name, info.shape):
        return decision
    settings = replace(settings, format=mixed) if mixed and mixed != settings.format else settings
    return choose(info, decision, rules.by_layer.get(_layer(info.name)), settings)


@dataclass(frozen=True)
class _Steps:
    """The steps of a plan, each made once from all that decides it; iterate for them, in source order.

    chosen: by tensor name. stored: the companions of weights that are stored quantized. asked: the algorithm
    asked for each layer to quantize. scaled: the weights whose stored values mean nothing without a scale.
    folded: the tensors that folds change.
    """

    checkpoint: Checkpoint
    settings: Settings
    chosen: Mapping[str, Decision]
    stored: Mapping[str, StoredQuant]
    merges: Merges
    calibration: Calibration
    asked: Mapping[str, str | None]
    scaled: frozenset[str]
    folded: frozenset[str]

    def __iter__(self) -> Iterator[Step]:
        placer, tensors = Placer(self.settings), self.checkpoint.tensors
        corrected = self._corrected()
        for name, choice in self.chosen.items():
            info = tensors[name]
            if choice.action == "quantize":
                yield self._quantize(info, choice, corrected.get(_layer(name)), placer)
            elif choice.action == "cast":
                yield self._cast(info, choice)
            elif choice.action == "remove":
                yield Step(info, "drop", choice.reason)
            elif self._left_over(name):
                yield Step(info, "drop", LEFT_OVER)
            elif name not in corrected.values():
                yield from self._keep(info, choice.reason)

    def _left_over(self, name: str) -> bool:
        """Tell a companion of integers that stands beside floats, where this conversion writes its own."""
        layer, _, suffix = name.rpartition(".")
        return layer in self.asked and OLD_NAMES.get(suffix, suffix) in (*companion_suffixes(), CONFIG)

    def _corrected(self) -> dict[str, str]:
        """Name the biases that are corrected: they leave their own steps for those of their layers."""
        if not self.settings.bias_correction:
            return {}
        biases = {layer: f"{layer}.bias" for layer in self.asked if not self._is_bank(layer)}
        return {
            layer: bias
            for layer, bias in biases.items()
            if (kept := self.chosen.get(bias)) is not None
            and kept.action == "keep"
            and self.calibration.has(layer, "samples", "channel_mean")
        }

    def _is_bank(self, layer: str) -> bool:
        return len(self.checkpoint.tensors[f"{layer}.weight"].shape) == 3

    def _quantize(self, info: TensorInfo, choice: Decision, bias: str | None, placer: Placer) -> Step:
        assert choice.format is not None
        layer, shape = _layer(info.name), bank.matrix_shape(info.shape)
        form = layer_extras(layer, choice.format, self.calibration, self.settings)
        algorithm = layer_algorithm(self.asked[layer], layer, form.rotation > 0, self.calibration)
        placement, device = placer.place(shape, algorithm, form)
        outputs, companions = layer_outputs(layer, shape, form), self._scale_of(info)
        bias_merges: tuple[Merge, ...] = ()
        if bias is not None:
            source = self.checkpoint.tensors[bias]
            outputs = (*outputs, OutputTensor(bias, self._vector(source), source.shape))
            companions = {**companions, "bias": source}
            bias_merges = merges_of(source, True, self.scaled, self.merges)
        return Step(
            info,
            "quantize",
            choice.reason,
            outputs,
            form,
            algorithm,
            companions,
            encode_config(form.config()),
            merges_of(info, False, self.scaled, self.merges),
            bias_merges,
            placement,
            device,
            info.name in self.folded,
        )

    def _cast(self, info: TensorInfo, choice: Decision) -> Step:
        merges = merges_of(info, False, self.scaled, self.merges)
        output = OutputTensor(info.name, choice.dtype, info.shape)
        reason, folded = _with_note(choice.reason, merges), info.name in self.folded
        companions = self._scale_of(info)
        return Step(info, "cast", reason, (output,), companions=companions, merges=merges, folded=folded)

    def _keep(self, info: TensorInfo, reason: str) -> Iterator[Step]:
        merges = merges_of(info, True, self.scaled, self.merges)
        kept = _kept(info, _with_note(reason, merges), merges=merges)
        output = OutputTensor(info.name, self._vector(info), info.shape)
        yield replace(kept, outputs=(output,), folded=info.name in self.folded)
        quant = self.stored.get(info.name)
        if quant is None:
            return
        # A kept quantized layer stays loadable: its companions under today's names, its format as a tensor.
        for name in quant.names():
            yield _kept(self.checkpoint.tensors[name], f"belongs to {info.name}", standard_name(name))
        if quant.config_json:
            data = quant.config_json.encode("utf-8")
            out = OutputTensor(tensor_name(_layer(info.name), CONFIG), "U8", (len(data),))
            yield Step(info, "write", "format of a layer kept as it was", (out,), data=data)

    def _vector(self, info: TensorInfo) -> str:
        """Return the dtype of a kept tensor: F32 for folded vectors and tables, whose rounding would add up.

        What a bias loses in BF16 is the same error in every token and step: as much as a mean brings.
        """
        small = len(info.shape) != 2 or info.numel < _SMALL
        return "F32" if info.name in self.folded and small else info.dtype

    def _scale_of(self, info: TensorInfo) -> dict[str, TensorInfo]:
        """Return the scale that a stored FP8 weight is read with, by role."""
        quant = self.stored.get(info.name)
        if not (quant and quant.scale):
            return {}
        scale = self.checkpoint.tensors[quant.scale]
        _check_scale(scale, info)
        return {"scale": scale}


def _kept(info: TensorInfo, reason: str, name: str | None = None, merges: tuple[Merge, ...] = ()) -> Step:
    output = OutputTensor(name or info.name, info.dtype, info.shape)
    return Step(info, "keep", reason, (output,), merges=merges)


def _with_note(reason: str, merges: tuple[Merge, ...]) -> str:
    return f"{reason}, {merged_note(merges)}" if merges else reason


def _check_scale(scale: TensorInfo, weight: TensorInfo) -> None:
    """Refuse an FP8 scale that is neither one for all nor one per row."""
    if scale.numel not in (1, bank.matrix_shape(weight.shape)[0]) or scale.dtype not in QUANTIZABLE:
        raise ConversionError(
            f"{weight.name}: {weight.dtype} with a scale of shape {list(scale.shape)} cannot be read; "
            f"one scale per tensor or per row can"
        )


def _metadata(checkpoint: Checkpoint, steps: tuple[Step, ...], settings: Settings) -> dict[str, str]:
    """Return the source's metadata, less an old layer list, which ComfyUI would believe; with our record."""
    metadata = {
        k: v for k, v in checkpoint.metadata.items() if k not in (METADATA_KEY, record.KEY, recipe.KEY)
    }
    if made := planned(steps):
        metadata[record.KEY] = made.text()
    if settings.save_recipe:
        metadata[recipe.KEY] = json.dumps(recipe.recipe_of(settings, with_folders=False))
    if settings.save_quant_metadata:
        layers = {s.layer_name: s.format.config() for s in steps if s.format}
        layers |= {s.layer_name: json.loads(s.data) for s in steps if s.action == "write"}
        metadata[METADATA_KEY] = json.dumps({"format_version": "1.0", "layers": layers})
    return metadata


def recognise(checkpoint: Checkpoint, settings: Settings) -> list[Match]:
    """Return the models in the file: those its header shows, the one the settings name, or none."""
    if settings.preset == "none":
        return []
    if settings.preset == "auto":
        return detect(checkpoint.shapes(), checkpoint.metadata)
    try:
        return [assume(settings.preset, checkpoint.shapes())]
    except ValueError as e:
        raise ConversionError(f"--preset: {e}") from e


def _notes(steps: tuple[Step, ...], matches: list[Match], recognised: bool) -> Iterator[str]:
    for match in matches:
        under = f" under {match.prefix!r}" if match.prefix else ""
        yield f"recognised {match.label}{under}: {', '.join(match.evidence)}"
    prefixes = tuple(match.prefix for match in matches)
    apart = (s for s in steps if NEVER.match(s.name) or (matches and not s.name.startswith(prefixes)))
    for part, count in Counter(s.name.partition(".")[0] for s in apart).items():
        yield f"{part}: {count} tensors outside the recognised models stay as they are"
    if not matches and recognised:
        yield (
            "no known model is recognised in it: the general rule quantizes the 2-D weights of its repeated "
            "blocks; look at the dry run, or name the model with --preset"
        )
    yield from _stock_notes(steps)
    yield from _unread_notes(steps, matches)
    left = [s.name for s in steps if s.action == "drop" and s.reason == LEFT_OVER]
    if left:
        yield f"{len(left)} tensors are dropped: {LEFT_OVER} ({left[0]}, ...)"
    layers = [s for s in steps if s.format]
    banks = [s.format.kind() for s in layers if s.format and s.format.experts]
    if banks:
        yield (
            f"{len(banks)} banks of experts are {' and '.join(sorted(set(banks)))}: stock ComfyUI reads them "
            f"since {bank.SINCE}"
        )
    if tables := [s.layer_name for s in layers if names_vocabulary(s.layer_name)]:
        yield embeddings.note(tables)
    rotated = [s for s in layers if s.format and s.format.rotation]
    plain = [s for s in layers if not largest_group(s.source.shape[-1])]
    if rotated and plain:
        *some, last = map(str, PREFERRED_GROUPS)
        yield (
            f"{len(plain)} layers are not rotated: no group of {', '.join(some)} or {last} divides their "
            f"columns ({plain[0].name}, ...)"
        )


def _stock_notes(steps: tuple[Step, ...]) -> Iterator[str]:
    """Say which layers ComfyUI reads with the node pack only."""
    forms = [s.format for s in steps if s.format]
    refused = Counter(f.name for f in forms if not f.stock_since)
    for name, count in refused.items():
        yield f"stock ComfyUI refuses {name} ({count} layers): it needs the node pack (ctq install-nodes)"
    static = sum(INPUT_SCALE in f.extra for f in forms)
    if static:
        yield f"{static} layers have a static activation scale: stock ComfyUI ignores it"


def _unread_notes(steps: tuple[Step, ...], matches: list[Match]) -> Iterator[str]:
    """Say what becomes of models that stock ComfyUI reads no quantized file of."""
    for match in (m for m in matches if not m.preset.stock_since):
        changed = sum(s.format is not None and s.name.startswith(match.prefix) for s in steps)
        if changed:
            yield (
                f"{changed} layers of {match.preset.title} are quantized, for other runtimes: stock ComfyUI "
                f"takes their integers for weights and shows noise"
            )
        else:
            yield f"{match.preset.title} stays as it is: {not_read(match.preset)}"


def _overruled(steps: tuple[Step, ...], decisions: Mapping[str, Decision]) -> Iterator[str]:
    """Name layers that the preset or the general rule would have kept, and why it would."""
    kept = [
        s
        for s in steps
        if s.action in ("quantize", "cast") and decisions[s.name].action == "keep"
        if not s.reason.startswith(decisions[s.name].reason)
    ]
    if kept:
        yield (
            f"{len(kept)} layers change that would be kept without your patterns "
            f"({kept[0].layer_name}: {decisions[kept[0].name].reason}, ...)"
        )


def _why_nothing(plan: Plan) -> str:
    int8 = sum(s.source.dtype == "I8" for s in plan)
    if int8:
        return f"{int8} of its weights are INT8 already"
    unread = next((s.reason for s in plan if "(--force " in s.reason), "")
    if unread:
        return unread
    reasons: dict[str, int] = {}
    for step in plan:
        if step.action == "keep":
            reasons[step.reason] = reasons.get(step.reason, 0) + 1
    top = sorted(reasons.items(), key=lambda kv: -kv[1])[:3]
    return ", ".join(f"{n} tensors kept ({reason})" for reason, n in top)
