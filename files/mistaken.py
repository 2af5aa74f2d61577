"""What people give instead of a checkpoint, and the words that help them on."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LISTED = 500
_ENDINGS = (".safetensors", ".json", ".pth", ".pt", ".ckpt", ".bin", ".gguf")


def other_kind(file: object, head: bytes, size: int) -> str:
    """Say what a file is that is no safetensors file; "" for one of no known kind.

    head: its first bytes, some hundred if it has them.
    """
    text = head.lstrip().lower()
    if not size:
        return f"{file}: is empty; a download or a copy did not finish"
    if text.startswith(b"version https://git-lfs"):
        return (
            f"{file}: a Git LFS pointer, not the file itself ({size} bytes): the repository was cloned "
            "without its large files; run 'git lfs pull' in it, or download this file from the model's page"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            f"{file}: a web page, not a model: the download got a page to log in or an error instead; "
            "download it again, with your token if the model is gated"
        )
    if head.startswith(b"GGUF"):
        return (
            f"{file}: a GGUF file, which other programs quantized already; take the model's safetensors "
            "file in BF16 or FP16"
        )
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return (
            f"{file}: a PyTorch pickle of the kind written before torch 1.6, which cannot be streamed; "
            "save it again: torch.save(torch.load(FILE, weights_only=True), NEW)"
        )
    if text.startswith(b"{"):
        return f"{file}: JSON, not a safetensors file; an index is named *.safetensors.index.json"
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            return f"{file}: {what}, not a safetensors file; unpack it first"
    return ""


_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}


def not_there(given: str | os.PathLike[str]) -> str:
    """Say what was meant by a path at which nothing is: a web address, a hub's model, a file nearby."""
    text = os.fspath(given)
    path = Path(text)
    if _URL.match(text):
        return f"{text}: a web address; download the file first and give its path"
    is_hub_id = _HUB.fullmatch(text) and path.suffix not in _ENDINGS
    if is_hub_id and not path.parent.exists():
        return (
            f"{text}: no such file or folder; if it is a model on the Hugging Face Hub, download it first "
            f"(hf download {text}) and give the file's path"
        )
    found = nothing_here(given)
    if is_hub_id and "did you mean" not in found:
        found += f"; a model on the Hugging Face Hub is named hf://{text}"
    return found


def nothing_here(given: str | os.PathLike[str]) -> str:
    """Say how far a path leads on this machine, and what is there instead."""
    path = Path(given)
    missing = next((p for p in (*reversed(path.parents), path) if not p.is_dir()), path)
    near = _nearest(missing.name, missing.parent)
    hint = f"; did you mean {missing.parent / near}?" if near else ""
    if missing != path:
        return f"{os.fspath(given)}: there is no folder {missing}{hint}"
    return f"{os.fspath(given)}: no such file or folder{hint}"


def _nearest(name: str, folder: Path) -> str:
    """Return the entry of a folder whose name is most like `name`; "" if none is."""
    try:
        names = sorted(entry.name for entry, _ in zip(os.scandir(folder), range(_LISTED), strict=False))
    except OSError:
        return ""
    plain = {n.lower(): n for n in names if n.isprintable()}
    found = get_close_matches(name.lower(), plain, 1, 0.6)
    return plain[found[0]] if found else ""
