"""Which presets a checkpoint holds, from its header alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

from .audio import AUDIO
from .earlier import EARLIER
from .facts import KeepSet, Match, Naming, Preset, Shapes, compiled
from .flux_qwen import FLUX_FAMILY, QWEN_FAMILY
from .image import IMAGE
from .keep_sets import KEEP_SETS
from .lumina import LUMINA_FAMILY
from .text_encoders import TEXT_ENCODERS
from .video import VIDEO

PRESETS: tuple[Preset, ...] = (
    *FLUX_FAMILY,
    *QWEN_FAMILY,
    *LUMINA_FAMILY,
    *IMAGE,
    *VIDEO,
    *EARLIER,
    *AUDIO,
    *TEXT_ENCODERS,
)

# Parts of an all-in-one checkpoint that are never quantized.
NEVER = re.compile(r"^(vae|first_stage_model|audio_vae|vocoder|text_embedding_projection)\.")


def detect(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> list[Match]:
    """Find the presets that fit a header, diffusion models first; an empty list if none does.

    ``shapes`` maps tensor names to shapes, in any order. A file may hold several
    models under different prefixes, and any prefix that ends with a dot is found.
    At most one match is returned per prefix: the one with the most facts.
    ``metadata`` is the header's ``__metadata__``; the architecture that it claims is
    shown with the evidence but decides nothing, because it is often copied from the
    file a model was made from.
    """
    found: dict[str, Match] = {}
    # Longest prefix first: a tensor inside one part is no evidence for a part around it.
    for prefix, preset, naming in sorted(_candidates(shapes), key=_specific_first):
        anchor = prefix + naming.anchor
        if any(anchor.startswith(inner) for inner in found):
            continue
        if all(fact.holds(shapes, prefix) for fact in naming.facts):
            found[prefix] = _match(preset, naming, prefix, shapes, metadata or {})
    return sorted(found.values(), key=lambda match: (match.preset.kind, match.prefix))


def assume(name: str, shapes: Shapes) -> Match:
    """Match a preset that the user names, whether or not it would be detected.

    The prefix is the one under which most tensors lie in the preset's blocks.
    Raises ValueError for an unknown name, and for a file that has none of the
    blocks, because such a preset would leave the whole file as it is.
    """
    preset = by_name(name)
    for match in detect(shapes):
        if match.preset is preset:
            return match
    blocks = compiled(preset.blocks)
    hits: Counter[str] = Counter()
    for key in shapes:
        start = 0
        while blocks is not None and not NEVER.match(key):
            if blocks.match(key[start:]):
                hits[key[:start]] += 1
                break
            start = key.find(".", start) + 1
            if start == 0:
                break
    if not hits:
        wanted = ", ".join(preset.blocks)
        raise ValueError(
            f"preset {preset.name} ({preset.title}) does not fit this file: "
            f"no tensor lies in its blocks ({wanted})"
        )
    prefix = min(hits, key=lambda prefix: (-hits[prefix], len(prefix)))
    evidence = (f"named by the user; {hits[prefix]} tensors lie in its blocks",)
    return Match(preset, prefix, evidence=evidence, named=True)


def by_name(name: str) -> Preset:
    """Return the preset of this name, alias or variant; case and ``_`` for ``-`` do not matter.

    Raises ValueError naming the nearest valid names.
    """
    try:
        return _names()[_plain(name)]
    except KeyError:
        raise ValueError(_unknown("preset", name, list(_names()), [p.name for p in PRESETS])) from None


def keep_set(name: str) -> KeepSet:
    """Return the extra keep-set of this name. Raises ValueError naming the nearest valid names."""
    sets = {_plain(keep.name): keep for keep in KEEP_SETS}
    try:
        return sets[_plain(name)]
    except KeyError:
        names = [keep.name for keep in KEEP_SETS]
        raise ValueError(_unknown("keep-set", name, list(sets), names)) from None


def _match(preset: Preset, naming: Naming, prefix: str, shapes: Shapes, metadata: Mapping[str, str]) -> Match:
    evidence = [fact.text(prefix) for fact in naming.facts]
    variant = next((variant for variant in preset.variants if variant.holds(shapes, prefix)), None)
    if variant is not None:
        way = next(way for way in variant.ways if all(fact.holds(shapes, prefix) for fact in way))
        evidence += [fact.text(prefix) for fact in way]
    claim = metadata.get("modelspec.architecture")
    if claim and preset.kind == "diffusion":
        evidence.append(f"the header's modelspec.architecture says {claim}")
    return Match(preset, prefix, naming.name, variant.name if variant else None, tuple(evidence))


def _specific_first(hit: tuple[str, Preset, Naming]) -> tuple[int, str, int, str]:
    prefix, preset, naming = hit
    return -len(prefix), prefix, -len(naming.facts), preset.name


def _candidates(shapes: Shapes) -> list[tuple[str, Preset, Naming]]:
    """List every (prefix, preset, naming) whose anchor tensor is in the file under that prefix."""
    anchors = _anchors()
    hits = []
    for name in shapes:
        for preset, naming in anchors.get(_tail(name), ()):
            anchor = naming.anchor
            prefix = name[: len(name) - len(anchor)]
            at_border = not prefix or prefix.endswith(".")
            if name.endswith(anchor) and at_border and not NEVER.match(name):
                hits.append((prefix, preset, naming))
    return hits


@cache
def _anchors() -> dict[str, list[tuple[Preset, Naming]]]:
    anchors: dict[str, list[tuple[Preset, Naming]]] = {}
    for preset in PRESETS:
        for naming in preset.namings:
            anchors.setdefault(_tail(naming.anchor), []).append((preset, naming))
    return anchors


@cache
def _names() -> dict[str, Preset]:
    """Return plain name -> preset. A preset's own name wins over a variant's or an alias."""
    names = {_plain(preset.name): preset for preset in PRESETS}
    for preset in PRESETS:
        for name in (*(variant.name for variant in preset.variants), *preset.aliases):
            names.setdefault(_plain(name), preset)
    return names


def _tail(name: str) -> str:
    """Return the last two components of a name."""
    return ".".join(name.rsplit(".", 2)[-2:])


def _plain(name: str) -> str:
    return name.strip().lower().lstrip("-").replace("_", "-")


def _unknown(what: str, name: str, known: list[str], listed: list[str]) -> str:
    near = get_close_matches(_plain(name), known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the names are: {', '.join(sorted(listed))}"
    return f"there is no {what} {name!r}; {hint}"
