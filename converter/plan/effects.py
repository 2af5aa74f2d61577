"""Options that change nothing in the conversion they are given for: one row says what an option needs.

Every option stands here once, in `EFFECTS` or in `ALWAYS`: a test asks that of a new one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from ...formats.algorithms import ALGORITHMS
from ..layers.selection import names_vocabulary
from ..options.settings import Settings
from ..presets import Match, by_name, compiled, keep_set
from .steps import Plan


@dataclass(frozen=True)
class Effect:
    """What makes options matter.

    options: fields of Settings. matters: tells whether they change anything in a plan. why_not: the end of
    "... changes nothing here: ".
    """

    options: tuple[str, ...]
    matters: Callable[[Settings, Plan], bool]
    why_not: str


def _algorithm(fact: str) -> Callable[[Settings, Plan], bool]:
    """Tell whether some layer's algorithm has a fact of `formats.algorithms.Algorithm`."""
    return lambda settings, plan: any(getattr(ALGORITHMS[s.algorithm], fact) for s in plan.quantized)


def _needs(option: str) -> Callable[[Settings, Plan], bool]:
    return lambda settings, plan: bool(getattr(settings, option))


def _calibrated(settings: Settings, plan: Plan) -> bool:
    extra = settings.bias_correction or settings.static_activations or settings.smoothquant
    return bool(extra or plan.inputs) or _algorithm("needs_hessian")(settings, plan)


_optimizes, _factors = _algorithm("optimizes"), _algorithm("factors")
_NO_LDLQ = "no layer is rounded with LDLQ or learned rounding, which need --calibration-data or --optimizer"

EFFECTS = (
    Effect(("optimizer",), lambda s, p: not s.simple, "--simple rounds every layer to nearest"),
    Effect(
        ("num_iter", "lr"), _optimizes, "no layer has learned rounding (--optimizer original, adamw, radam)"
    ),
    Effect(("quip_actorder", "quip_passes"), _algorithm("needs_hessian"), "no layer is rounded with LDLQ"),
    Effect(
        (
            "quip_damping",
            "quip_checkpointed",
            "quip_checkpoint_threshold",
            "quip_checkpoint_segments",
            "bf16_compute",
            "device",
            "streaming_mode",
        ),
        _factors,
        _NO_LDLQ,
    ),
    Effect(
        ("quip_seed",),
        lambda s, p: s.calib_samples is not None or _optimizes(s, p),
        "nothing is drawn at random without --calib-samples or learned rounding",
    ),
    Effect(
        ("calibration_data", "calibration_lora"),
        _calibrated,
        "every layer is rounded to nearest, as --simple or --optimizer says",
    ),
    Effect(("calib_samples",), _needs("calibration_data"), "there is no --calibration-data"),
    Effect(("smoothquant_alpha",), _needs("smoothquant"), "it is the strength of --smoothquant"),
    Effect(
        ("convrot_group_size",),
        lambda s, p: any(x.format and x.format.rotation for x in p.quantized),
        "no layer is rotated",
    ),
    Effect(
        ("block_size",),
        lambda s, p: any(getattr(x.format, "block_size", 0) for x in p.quantized),
        "no layer has blocks (--scaling_mode block)",
    ),
    Effect(("preserve_layers",), _needs("output_dtype"), "it goes with --output-dtype"),
    Effect(("merge_lora_scale",), lambda s, p: bool(p.loras), "no LoRA is merged"),
    Effect(("merge_lora_dampen",), lambda s, p: len(p.loras) > 1, "fewer than two LoRAs are merged"),
    Effect(
        ("preset_strict",),
        lambda s, p: any(x.reason.startswith("kept by strict") for x in p),
        "no layer of this model is kept by it",
    ),
    Effect(
        ("embeddings",),
        lambda s, p: any(names_vocabulary(x.layer_name) for x in p.quantized),
        "there is no table of embeddings that can be quantized",
    ),
    Effect(("quality_threshold",), _needs("report_quality"), "it goes with --report-quality"),
)

ALWAYS = frozenset(
    {
        # What is read and written, and how.
        *("overwrite", "force"),
        *(
            "input_file",
            "output_file",
            "format",
            "scaling_mode",
            "comfy_quant",
            "output_dtype",
            "target_size",
        ),
        *(
            "save_quant_metadata",
            "save_recipe",
            "verify",
            "report_quality",
            "strict",
            "json",
            "low_memory",
            "scale_search",
            "simple",
        ),
        *(
            "full_precision_matrix_mult",
            "heur",
            "merge_lora_path",
            "merge_lora_paths",
            "preset",
            "extract_lora",
        ),
        # Those that are refused, or told of, where they are read: without calibration, without a layer.
        *(
            "bias_correction",
            "static_activations",
            "smoothquant",
            "fold",
            "keep_names",
            "keep_sets",
            "convrot",
        ),
        *("min_format", "max_format", "lora_target", "lora_output"),
        *("layer_config", "exclude_layers", "custom_layers", "custom_type", "custom_scaling_mode"),
        *("custom_block_size", "custom_simple", "custom_convrot", "custom_convrot_group_size", "custom_heur"),
        *("custom_full_precision_mm", "fallback", "fallback_block_size", "fallback_simple"),
    }
)
"""Options that matter in every conversion, or whose own code says when they do not."""


def idle_options(
    settings: Settings, plan: Plan, names: Iterable[str], matches: Sequence[Match]
) -> Iterator[str]:
    """Yield a line for each option that was given and changes nothing, or is for another model.

    names: the checkpoint's tensors. matches: the models found among them.
    """
    flags = {f.name: (f.metadata["flags"][0], f.default) for f in fields(Settings)}
    for effect in EFFECTS:
        given = [flags[o][0] for o in effect.options if getattr(settings, o) != flags[o][1]]
        if given and not effect.matters(settings, plan):
            verb = "change" if len(given) > 1 else "changes"
            yield f"{' and '.join(given)} {verb} nothing here: {effect.why_not}"
    for name in settings.keep_sets:
        yield from _family_flag(name, list(names), matches)


def _family_flag(name: str, names: Sequence[str], matches: Sequence[Match]) -> Iterator[str]:
    """Say that a model's flag is for another model than the one found, or keeps nothing in this file."""
    wanted = keep_set(name)
    pattern = compiled((*wanted.keep, *wanted.remove, *wanted.ends))
    if pattern is not None and not any(pattern.search(n) for n in names):
        yield f"--{name} changes nothing here: no layer of this file has a name that it keeps"
    try:
        preset = by_name(name)
    except ValueError:
        return  # a set for several models
    if matches and all(match.preset is not preset for match in matches):
        found = " and ".join(match.label for match in matches)
        yield f"--{name} is for {preset.title}, and this file is recognised as {found}: is it the right flag?"
