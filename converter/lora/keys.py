"""The key styles of LoRA files: from a tensor's name to its module and its role there.

Styles seen: PEFT and diffusers (``X.lora_A.weight``, ``X.lora_A.default.weight``), kohya and ComfyUI
(``X.lora_down.weight``, ``X.alpha``), the first diffusers releases (``X_lora.down.weight``), LyCORIS
(``X.hada_w1_a``, ``X.lokr_w1``, ``X.dora_scale``) and whole differences (``X.diff``, ``X.diff_b``).
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from ...formats.errors import ConversionError

_ADAPTER = r"(?:\.[^.]+)?"  # PEFT puts the adapter's name here: ``.default``
_ROLES = {
    "down": (
        rf"\.lora_down\.weight|\.lora_A{_ADAPTER}\.weight|\.lora_A|_lora\.down\.weight"
        r"|\.lora\.down\.weight|\.lora_linear_layer\.down\.weight"
    ),
    "up": (
        rf"\.lora_up\.weight|\.lora_B{_ADAPTER}\.weight|\.lora_B|_lora\.up\.weight"
        r"|\.lora\.up\.weight|\.lora_linear_layer\.up\.weight"
    ),
    "up_bias": rf"\.lora_up\.bias|\.lora_B{_ADAPTER}\.bias",
    "alpha": r"(?:_lora|\.lora|\.lora_linear_layer)?\.alpha",
    "dora": rf"\.dora_scale|\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?",
    "hada_w1_a": r"\.hada_w1_a",
    "hada_w1_b": r"\.hada_w1_b",
    "hada_w2_a": r"\.hada_w2_a",
    "hada_w2_b": r"\.hada_w2_b",
    "lokr_w1": r"\.lokr_w1",
    "lokr_w1_a": r"\.lokr_w1_a",
    "lokr_w1_b": r"\.lokr_w1_b",
    "lokr_w2": r"\.lokr_w2",
    "lokr_w2_a": r"\.lokr_w2_a",
    "lokr_w2_b": r"\.lokr_w2_b",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
}
_KEY = re.compile(
    r"(?P<module>.+?)(?:" + "|".join(f"(?P<{role}>{ending})" for role, ending in _ROLES.items()) + r")\Z"
)

_UNSUPPORTED = (
    (re.compile(r"\.(?:lora_mid\.weight|hada_t[12]|lokr_t[12])\Z"), "a Tucker-decomposed convolution (CP)"),
    (re.compile(r"\.(?:oft_blocks|oft_diag|oft_R(?:\..+)?)\Z"), "OFT or BOFT"),
    (re.compile(r"\.[ab][12]\.weight\Z"), "GLoRA"),
    (re.compile(r"\.lora_embedding_[AB](?:\..+)?\Z"), "a PEFT embedding adapter"),
    (re.compile(r"\.(?:ia3_l(?:\..+)?|on_input)\Z"), "IA3"),
    (re.compile(r"\.(?:vera_lambda_[bd](?:\..+)?|randlora_[A-Za-z]+(?:\..+)?)\Z"), "VeRA or RandLoRA"),
    (re.compile(r"\.(?:reshape_weight|set_weight|set_bias)\Z"), "a replacement of whole weights"),
)


class Key(NamedTuple):
    """A LoRA tensor's place: the module it belongs to, as its file names it, and what it is there."""

    module: str
    role: str


def is_lora(names: Collection[str]) -> bool:
    """Tell whether a file of these tensors is a LoRA: most of them are changes of layers, of any kind."""
    changes = sum(1 for n in names if _KEY.match(n) or any(p.search(n) for p, _ in _UNSUPPORTED))
    return 2 * changes > len(names)


def parse_key(name: str) -> Key | None:
    """Return the module and role of a LoRA tensor; None for a name that no known style has.

    ConversionError for a tensor of a kind of adapter that cannot be merged here, by name.
    """
    for pattern, kind in _UNSUPPORTED:
        if pattern.search(name):
            raise ConversionError(f"LoRA key {name!r} belongs to {kind}, which cannot be merged")
    found = _KEY.match(name)
    if found is None:
        return None
    role = next(role for role in _ROLES if found[role] is not None)
    return Key(found["module"].replace(".processor.", "."), role)
