"""Where a file is that is not on this machine: told from a path, and shown without secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import url2pathname

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PART = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"({_PART}/{_PART})(?:@([\w.%-]+))?(?:/(.+?))?/?")
_PAGE = re.compile(rf"/({_PART}/{_PART})(?:/(?:resolve|blob|tree)/([^/]+)(?:/(.+?))?)?/?")
_HUB_HOSTS = ("huggingface.co", "hf.co")
_COMMIT = re.compile(r"@([0-9a-f]{8})[0-9a-f]{32}(?=/|$)")
_FILES = (".safetensors", ".json", ".pth", ".pt", ".ckpt", ".bin", ".gguf")


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder elsewhere.

    address: its URL, which may hold a password or a signature; ``str()`` shows it without. given: the words
    of a person from which a model on the hub was guessed, "" for an address that can be nothing else.
    """

    address: str = field(repr=False)
    given: str = field(default="", compare=False)

    def __str__(self) -> str:
        return shown(self.address)

    def without_state(self) -> str:
        """Return its address for people without what changes while the file stays: the commit on the hub."""
        return shown(_COMMIT.sub("", self.address))

    @property
    def scheme(self) -> str:
        """Return what stands before ``://``, in lower case."""
        return self.address.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """Return the last part of its path, as a file here could be called."""
        last = _without_query(self.address).rstrip("/").rpartition("/")[2]
        if self.scheme == "hf":
            last = last.partition("@")[0]
        plain = unquote(last)
        return plain if plain.isprintable() and not set(plain) & set('/\\:*?"<>|') else quote(last, safe="")

    def sibling(self, name: str) -> RemoteFile:
        """Return the file of another name in the same folder."""
        head, chain, rest = self.address.partition("::")
        path, mark, query = head.partition("?") if self.scheme in ("http", "https") else (head, "", "")
        return RemoteFile(f"{path.rpartition('/')[0]}/{self._spelled(name)}{mark}{query}{chain}{rest}")

    def inside(self, name: str) -> RemoteFile:
        """Return a file in this folder."""
        head, chain, rest = self.address.partition("::")
        return RemoteFile(f"{head.rstrip('/')}/{self._spelled(name)}{chain}{rest}")

    def _spelled(self, name: str) -> str:
        return quote(name) if self.scheme in ("http", "https") else name


Location = Path | RemoteFile
"""Where a file or folder is: here, or elsewhere."""


@dataclass(frozen=True)
class HubPlace:
    """A model's repository on the hub, or a file or folder in it. revision: "" for the main branch."""

    repository: str
    revision: str = ""
    path: str = ""


def located(given: str | os.PathLike[str] | RemoteFile) -> Location:
    """Return where something that a person named is.

    What is here comes first; a `Path` is always here. Else a text with ``://`` is an address, and one of the
    form ``org/model`` or ``org/model/file.safetensors``, of which there is no folder ``org`` here, is a model
    on the hub. Pages of the hub stand for what they show.
    """
    if isinstance(given, RemoteFile):
        return given
    if not isinstance(given, str) or os.path.exists(given):
        return Path(given)
    if given.lower().startswith(("file://", "local://")):
        return Path(url2pathname(urlsplit(given).path))
    if _URL.match(given):
        return RemoteFile(_from_page(given) or given)
    return RemoteFile(f"hf://{given}", given) if _may_be_a_model(given) else Path(given)


def is_here(given: str | os.PathLike[str]) -> bool:
    """Return whether what a person named would be looked for on this machine."""
    return isinstance(located(given), Path)


def beside(location: Location) -> Path:
    """Return the folder in which files stand that belong to a model: its own, or the current one."""
    return location.parent if isinstance(location, Path) else Path()


def hub_place(place: RemoteFile) -> HubPlace | None:
    """Take a ``hf://org/model@revision/path`` apart; None for one that names no model."""
    found = _HUB.fullmatch(place.address.partition("://")[2])
    if place.scheme != "hf" or found is None or found[1].startswith(("datasets/", "spaces/", "buckets/")):
        return None
    return HubPlace(found[1], unquote(found[2] or ""), found[3] or "")


def shown(address: str) -> str:
    """Return an address for people: without a user's name and password, without a query and its signatures.

    Commits are cut to eight digits.
    """
    parts = []
    for part in _without_query(address).split("::"):
        scheme, mark, rest = part.rpartition("://")
        host, slash, path = rest.partition("/")
        _, at, host_only = host.rpartition("@")
        host = host_only if mark and at and scheme.lower() != "hf" else host
        parts.append(f"{scheme}{mark}{host}{slash}{path}")
    return _COMMIT.sub(r"@\1", "::".join(parts))


def _without_query(address: str) -> str:
    head, chain, rest = address.partition("::")
    plain = head.partition("?")[0].partition("#")[0]
    return plain + (chain + _without_query(rest) if chain else "")


def _may_be_a_model(text: str) -> bool:
    found = _HUB.fullmatch(text)
    if found is None or "\\" in text or "//" in text or "/." in text or not text.isprintable():
        return False
    first = text.partition("/")[0]
    if found[3] is None and found[1].endswith(_FILES):  # folder/file.safetensors
        return False
    return not os.path.exists(first)


def _from_page(url: str) -> str:
    """Return the ``hf://`` address of what a page of the hub shows, "" for any other address."""
    try:
        parts = urlsplit(url)
    except ValueError:  # told by whoever asks for it
        return ""
    if parts.scheme not in ("http", "https") or parts.netloc not in (*_HUB_HOSTS, _endpoint_host()):
        return ""
    page = _PAGE.fullmatch(parts.path)
    if page is None or page[1].startswith(("datasets/", "spaces/", "api/")):
        return ""
    revision = f"@{page[2]}" if page[2] and page[2] != "main" else ""
    return urlunsplit(("hf", page[1] + revision, unquote(page[3] or ""), "", ""))


def _endpoint_host() -> str:
    return urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
