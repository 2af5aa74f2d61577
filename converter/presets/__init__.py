"""What is known about each model architecture, as data.

``PRESETS`` is the table: one row per family, with the facts that recognise it in a
header and the layers that keep their precision. ``detect`` finds the rows that fit
a file; ``by_name`` and ``assume`` serve a user who names one. ``KEEP_SETS`` holds
the extra sets behind the model flags of the command line. Nothing here imports torch.
"""

from .detect import NEVER, PRESETS, assume, by_name, detect, keep_set
from .facts import Fact, KeepSet, Match, Naming, Preset, Shapes, Variant, compiled
from .keep_sets import KEEP_SETS

__all__ = [
    "KEEP_SETS",
    "NEVER",
    "PRESETS",
    "Fact",
    "KeepSet",
    "Match",
    "Naming",
    "Preset",
    "Shapes",
    "Variant",
    "assume",
    "by_name",
    "compiled",
    "detect",
    "keep_set",
]
