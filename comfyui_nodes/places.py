"""Which files a workflow may name: ComfyUI's own folders, and nothing outside them.

A workflow comes from anywhere, so its names are checked as ComfyUI's nodes check theirs: they stay below
a folder, also through links, a number is counted up instead of writing over a file, and what is refused is
refused before the disk is asked, so that no path can be probed.
"""

import os
import re
import tempfile
from pathlib import Path, PureWindowsPath
from typing import Any

CALIBRATION = "calibration"
"""Name of the folder of calibration files, below the output folder and below the models."""

NONE = "none"
"""The choice of no calibration."""

_SUFFIXES = (".safetensors", ".json")
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com\d|lpt\d)\s*(\..*)?", re.IGNORECASE)


def folders() -> Any:
    """Return ComfyUI's ``folder_paths``; RuntimeError outside ComfyUI."""
    try:
        import folder_paths
    except ImportError as e:
        raise RuntimeError(f"files are named below ComfyUI's folders, and this is no ComfyUI ({e})") from e
    return folder_paths


def relative(name: str) -> str:
    """Return a workflow's file name with "/" between its parts.

    ValueError for what is no plain name below a folder on every system: empty, absolute, with a drive, a
    stream or a device of Windows, "..", or a control character.
    """
    text = name.strip().replace("\\", "/")
    parts = text.split("/")
    bad = (
        not text
        or any(ord(c) < 32 or ord(c) == 127 or c in ':*?"<>|' for c in text)
        or text.startswith(("/", "~"))
        or PureWindowsPath(text).is_absolute()
        or any(p in ("", ".", "..") or p != p.rstrip(". ") or _DEVICE.fullmatch(p) for p in parts)
    )
    if bad:
        raise ValueError(
            f"{name!r} is no file name to use here: give a plain name, or folder/name, below ComfyUI's folder"
        )
    return text


def within(folder: str | os.PathLike[str], name: str) -> Path:
    """Return `name` below `folder`; ValueError where it lies elsewhere, also by way of a link."""
    root = os.path.realpath(folder)
    path = os.path.join(root, *relative(name).split("/"))
    real = os.path.realpath(path)
    if os.path.commonpath((root, real)) != root:
        raise ValueError(f"{name!r} leads out of {os.path.basename(root)}/ by a link")
    return Path(path)


def new_file(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return where a new safetensors file of that name goes: ``NAME_00001_.safetensors``, the next free one.

    name: as ComfyUI's saving nodes take it, with %date% and the like; an ending is dropped. folder: None for
    the output folder. The folder in between is made. ValueError as `relative` and `within`.
    """
    found = folders()
    root = os.path.realpath(found.get_output_directory() if folder is None else folder)
    plain = relative(name).removesuffix(".safetensors")
    within(root, plain)
    where, stem, count, *_ = found.get_save_image_path(relative(plain), root)
    within(root, os.path.relpath(os.path.join(where, stem), root))
    while True:
        path = Path(where) / f"{stem}_{count:05}_.safetensors"
        if not os.path.lexists(path):
            return path
        count += 1


def below_output(path: Path) -> str:
    """Return a path below the output folder as workflows name it: relative, with "/"."""
    return path.relative_to(os.path.realpath(folders().get_output_directory())).as_posix()


def private_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that no one else writes to, below ComfyUI's temporary one; it goes with its block."""
    parent = folders().get_temp_directory()
    os.makedirs(parent, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="convert_to_quant-", dir=parent)


def calibration_folders() -> list[str]:
    """Return where calibration files lie: the recorder's own folder, then the models' one."""
    found = folders()
    own = os.path.join(found.get_output_directory(), CALIBRATION)
    return [own, os.path.join(found.models_dir, CALIBRATION)]


def calibration_files() -> list[str]:
    """Return the names of all calibration files, those of the recorder newest first."""
    names: dict[str, float] = {}
    for folder in calibration_folders():
        for root, _, files in os.walk(folder):
            for file in files:
                path = os.path.join(root, file)
                if file.endswith(_SUFFIXES) and os.path.isfile(path) and not os.path.islink(path):
                    name = os.path.relpath(path, folder).replace(os.sep, "/")
                    names.setdefault(name, os.path.getmtime(path))
    return sorted(names, key=lambda n: -names[n])


def calibration_file(name: str) -> Path | None:
    """Return the calibration file that a workflow names; None where there is none.

    name: one of `calibration_files`, or what a recorder is called: its newest file. ValueError as `within`.
    """
    for folder in calibration_folders():
        if within(folder, name).is_file():
            return within(folder, name)
    stem = relative(name).removesuffix(".safetensors")
    numbered = re.compile(rf"{re.escape(stem)}_\d+_\.safetensors")
    newest = next((n for n in calibration_files() if numbered.fullmatch(n)), None)
    return None if newest is None else calibration_file(newest)
