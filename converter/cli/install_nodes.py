"""``ctq install-nodes``: put the ComfyUI node pack into a ComfyUI."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ...formats.errors import ConversionError
from .suggest import SuggestingParser
from .text import say

FOLDER = "convert_to_quant_nodes"
"""Name below ``custom_nodes/``. Not the package's own: the two must not be taken for one another."""


def source_folder() -> Path:
    """Return the node pack's folder: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parents[2]
    for folder in (here / "comfyui_nodes", here / "convert_to_quant" / "comfyui_nodes"):
        if (folder / "__init__.py").is_file():
            return folder
    raise ConversionError(f"the node pack is missing beside {here}: reinstall convert_to_quant")


def custom_nodes(path: Path) -> Path:
    """Return ``custom_nodes`` of a ComfyUI folder, or `path` itself when it is that; else ConversionError."""
    if path.name == "custom_nodes" and path.is_dir():
        return path
    if (path / "custom_nodes").is_dir():
        return path / "custom_nodes"
    raise ConversionError(
        f"{path}: not a ComfyUI folder (no custom_nodes in it); name the folder that has main.py"
    )


def install(path: str | os.PathLike[str], copy: bool = False, remove: bool = False) -> Path:
    """Link (or copy) the node pack into the ComfyUI at `path`, replacing an older one; returns the place.

    copy: copy instead; done anyway where links are not allowed (Windows without the privilege).
    remove: only take it away. ConversionError when `path` is no ComfyUI, or something else has the name.
    """
    target = custom_nodes(Path(path)) / FOLDER
    _clear(target)
    if remove:
        return target
    source = source_folder()
    if not copy:
        try:
            target.symlink_to(source, target_is_directory=True)
            return target
        except OSError:
            pass
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def _clear(target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    elif target.is_dir():
        if not (target / "kitchen_layouts.py").is_file():
            raise ConversionError(f"{target} exists and is not this node pack; remove it first")
        shutil.rmtree(target)
    elif target.exists():
        raise ConversionError(f"{target} exists and is not this node pack; remove it first")


def main(argv: Sequence[str] | None = None) -> int:
    """Install or remove the node pack; returns 0. ConversionError says what failed."""
    parser = SuggestingParser(
        prog="ctq install-nodes", description="Link the convert_to_quant node pack into a ComfyUI."
    )
    parser.add_argument("path", help="the ComfyUI folder, or the custom_nodes folder in it")
    parser.add_argument("--copy", action="store_true", help="copy the node pack instead of linking to it")
    parser.add_argument("--remove", action="store_true", help="remove an installed node pack")
    args = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    target = install(args.path, args.copy, args.remove)
    say(f"removed {target}" if args.remove else f"installed {target}; restart ComfyUI")
    return 0
