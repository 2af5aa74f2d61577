"""What the options of the best-known other converter mean here: one row each.

People bring command lines from there (PyPI's ``convert_to_quant``), so each of its spellings is known. It
stands for options of this tool, or tunes an optimizer that is not here (it changes nothing, and that is said
in one line), or is refused with the name of what does the work here. Options that both tools spell alike are
fields of `Settings` and not listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIVEN = "<given>"
"""In `PeerOption.sets`: the value that was given."""


@dataclass(frozen=True)
class PeerOption:
    """One option of the other tool.

    flags: its spellings. value: whether one follows. keyword: its name in Python where that is not the first
    long flag's. sets: the fields of Settings (or CommandOptions) that it stands for. by_value: the same for
    single values, instead of `sets`. says: a line for the user. idle: changes nothing here. instead: refused,
    with what to do instead. edits: a run of ``ctq edit``, not a conversion.
    """

    flags: tuple[str, ...]
    value: bool = False
    keyword: str = ""
    sets: Mapping[str, Any] = field(default_factory=dict)
    by_value: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    says: str = ""
    idle: bool = False
    instead: str = ""
    edits: bool = False

    @property
    def name(self) -> str:
        """Its name in Python, and under which the parser keeps it."""
        return self.keyword or next(f for f in self.flags if f.startswith("--"))[2:].replace("-", "_")

    def fields(self, value: Any) -> Mapping[str, Any]:
        """Return what it sets here when `value` (True for a flag) is given."""
        found = self.by_value.get(str(value), self.sets)
        return {name: value if what is GIVEN else what for name, what in found.items()}


def _spelled(*names: str) -> tuple[str, ...]:
    """Return the flags of names with dashes and with underscores."""
    return tuple(dict.fromkeys(f"--{form}" for n in names for form in (n, n.replace("-", "_"))))


def _also(flags: tuple[str, ...], name: str, value: bool = True) -> PeerOption:
    """Make further spellings of an option of this tool."""
    return PeerOption(flags, value, sets={name: GIVEN})


def _knob(name: str, *short: str, value: bool = True, keyword: str = "") -> PeerOption:
    """Make an option that tunes an optimizer which is not here."""
    return PeerOption((*_spelled(name), *short), value, keyword, idle=True)


def _refused(name: str, instead: str, value: bool = True, keyword: str = "") -> PeerOption:
    return PeerOption(_spelled(name), value, keyword, instead=instead)


_CALIBRATE = (
    "measure real inputs with the recorder node or convert_to_quant.calibrate, then give the file to "
    "--calibration-data with --static-activations"
)
_OLD_FP8 = "ctq edit FILE writes an old scaled FP8 file with comfy_quant, which ComfyUI reads"
_HYBRID = "no format here has a second set of scales; --format lists those that can be written"
_EDIT = "it belongs to ctq edit FILE (or add --edit-quant)"
_TARGET = "name the layers whose error you want with --lora-target REGEX"

PEER_OPTIONS = (
    # Formats.
    *(PeerOption((f"--{name}",), sets={"format": name}) for name in ("int8", "fp8", "nvfp4", "mxfp8")),
    _also(_spelled("group-size"), "block_size"),
    PeerOption(_spelled("dynamic-convrot"), sets={"convrot": True, "convrot_group_size": "auto"}),
    _refused("make-hybrid-mxfp8", _HYBRID, value=False),
    _refused("tensor-scales", _HYBRID, keyword="tensor_scales_path"),
    # Layers.
    PeerOption(("-fpmm", *_spelled("full-precision-mm")), sets={"full_precision_matrix_mult": True}),
    PeerOption(("--custom-fpmm",), sets={"custom_full_precision_mm": True}),
    PeerOption(
        ("--fullmatch",),
        keyword="layer_config_fullmatch",
        idle=True,
        says="the patterns of --layer-config always match whole names here, as with --fullmatch",
    ),
    # Scales of the activations.
    PeerOption(
        _spelled("input-scale"),
        idle=True,
        says="--input-scale writes nothing: 1.0 would stand for a scale that nobody measured; "
        "--static-activations with --calibration-data stores measured ones",
    ),
    PeerOption(
        _spelled("input-scales"),
        True,
        keyword="input_scales_path",
        sets={"calibration_data": GIVEN, "static_activations": True},
        says="--input-scales stores the scales of layers that are not rotated: --fp8, or --no-convrot",
    ),
    PeerOption(
        _spelled("no-normalize-scales"),
        idle=True,
        says="--no-normalize-scales changes nothing: scales have the shape that ComfyUI reads",
    ),
    # The run.
    PeerOption(
        _spelled("manual-seed"),
        True,
        sets={"quip_seed": GIVEN},
        by_value={"-1": {}},
    ),
    PeerOption(("-lm",), keyword="low_memory", sets={"low_memory": True}),
    PeerOption(
        _spelled("verbose-pinned"), idle=True, says="--verbose-pinned changes nothing: no memory is pinned"
    ),
    # Its optimizers.
    PeerOption(
        _spelled("scale-optimization"),
        True,
        sets={"scale_search": True},
        by_value={"fixed": {}},
        says="--scale-optimization is --scale-search here, which has one way of choosing scales",
    ),
    _knob("scale-refinement", keyword="scale_refinement_rounds"),
    _knob("full-matrix", value=False),
    _knob("calib-cpu", value=False),
    _knob("use-speed", value=False),
    _knob("top-p"),
    _knob("min-k"),
    _knob("max-k"),
    _knob("lr-schedule"),
    _knob("lr-gamma"),
    _knob("lr-patience"),
    _knob("lr-factor"),
    _knob("lr-min"),
    _knob("lr-cooldown"),
    _knob("lr-threshold"),
    _knob("lr-adaptive-mode"),
    _knob("lr-threshold-mode"),
    _knob("lr-shape-influence"),
    _knob("early-stop-loss", "-esloss"),
    _knob("early-stop-lr", "-eslr"),
    _knob("early-stop-stall", "-esstall"),
    # The error as a LoRA.
    PeerOption(_spelled("lora-rank"), True, sets={"extract_lora": GIVEN}),
    _refused("lora-depth", _TARGET),
    _refused("lora-ar-threshold", _TARGET),
    # Work on files that are quantized already.
    PeerOption(_spelled("convert-fp8-scaled"), edits=True),
    PeerOption(_spelled("convert-int8-scaled"), edits=True),
    _refused("hp-filter", "ctq inspect FILE shows the format of every layer"),
    _refused("legacy-input-add", _OLD_FP8, value=False),
    _refused("cleanup-fp8-scaled", _OLD_FP8, value=False),
    _refused("scaled-fp8-marker", _OLD_FP8),
    _refused("remove-keys", _EDIT),
    _refused("add-keys", _EDIT),
    _refused("quant-filter", _EDIT),
    # Calibration on made-up inputs.
    _refused("actcal", _CALIBRATE, value=False),
    _refused("actcal-samples", _CALIBRATE),
    _refused("actcal-percentile", _CALIBRATE),
    _refused("actcal-lora", "--calibration-lora FILE rounds with more care where a LoRA reads"),
    _refused("actcal-seed", _CALIBRATE),
    _refused("actcal-device", _CALIBRATE),
)
"""Every option of the other tool that is not one of ours under the same name."""

EDIT_FLAGS = (
    *(f for o in PEER_OPTIONS if o.edits for f in o.flags),
    *_spelled("edit-quant"),
)
"""Flags that make a command line of the converter one of ``ctq edit``."""

HELP_TOPICS = {
    "-hl": "quality",
    "--help-learned": "quality",
    "-ha": "quality",
    "--help-advanced": "quality",
    "-he": "layers",
    "--help-experimental": "layers",
    "-hf": "model",
    "--help-filters": "model",
    "-hm": "run",
    "--help-modes": "run",
    "-hlr": "lora",
    "--help-lora": "lora",
}
"""The other tool's pages of help, and the topic here."""
