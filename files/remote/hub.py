"""Models on the Hugging Face Hub: what they hold, and where their files are asked for.

Everything that concerns the hub's account (the token, the endpoint, being offline) is huggingface_hub's.
Files are read from one commit: what a run began with is what it ends with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from ...formats.errors import CheckpointError
from ...version import VERSION
from ..mistaken import nothing_here
from .address import HubPlace, RemoteFile, hub_place
from .extra import missing
from .source import Patience, RangeSource, Trouble
from .web import WebSource, origin

_PASSING = (408, 429, 500, 502, 503, 504)


def is_offline() -> bool:
    """Return whether huggingface_hub is told to use no network (HF_HUB_OFFLINE)."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return False
    return bool(constants.HF_HUB_OFFLINE)


def cached(place: RemoteFile) -> Path:
    """Return where the hub's cache on this machine has it; CheckpointError where it has not."""
    hub, at = _hub(place), _at(place)
    named = {"repo_id": at.repository, "revision": at.revision or None, "local_files_only": True}
    try:
        if at.path.endswith((".safetensors", ".json")):
            return Path(hub.hf_hub_download(filename=at.path, **named))
        return Path(hub.snapshot_download(**named), at.path)
    except Exception as e:
        here = f"{nothing_here(place.given)}; " if place.given else f"{place}: "
        raise CheckpointError(
            f"{here}the hub is not asked (HF_HUB_OFFLINE is set), and its cache here does not hold it"
        ) from e


class Hub:
    """One repository, as it was when it was asked for: a `Store`.

    CheckpointError, saying what to do, for a repository or revision that is not there or not to be read, and
    when the hub is out of reach.
    """

    def __init__(self, place: RemoteFile):
        self._hub, self._named = _hub(place), _at(place)
        info = _asked(place, self._named, self._hub)
        self._commit = str(info.sha)
        self._files = {
            str(f.rfilename): (int(f.size or 0), str((f.lfs.sha256 if f.lfs else f.blob_id) or ""))
            for f in info.siblings or ()
        }

    def at(self, place: RemoteFile) -> RemoteFile:
        """Return the address of a file or folder at the commit that the repository is at now."""
        at = _at(place)
        return RemoteFile(f"hf://{at.repository}@{self._commit}{'/' if at.path else ''}{at.path}")

    def listing(self, place: RemoteFile) -> Sequence[str] | None:
        """Return the paths of the files below a folder, None for a file."""
        at = _at(place)
        if at.path in self._files:
            return None
        below = f"{at.path}/" if at.path else ""
        found = [path[len(below) :] for path in self._files if path.startswith(below)]
        if not found:
            near = get_close_matches(at.path, self._files, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CheckpointError(f"{place}: the repository holds no such file{hint}")
        return found

    def source(self, place: RemoteFile) -> RangeSource:
        """Open a file; its size and digest are those that the hub told."""
        at, hub = _at(place), self._hub
        if at.path not in self._files:
            raise CheckpointError(f"{place}: the repository holds no such file")
        endpoint = hub.constants.ENDPOINT
        url = hub.hf_hub_url(at.repository, at.path, revision=self._commit, endpoint=endpoint)
        return WebSource(place, url, _Headers(hub), *self._files[at.path])


class _Headers:
    """What a request carries: the hub's token for the hub's own host, to no other."""

    def __init__(self, hub: ModuleType):
        self._endpoint = origin(hub.constants.ENDPOINT)
        self._own = dict(hub.utils.build_hf_headers(library_name="convert_to_quant", library_version=VERSION))

    def __call__(self, url: str) -> Mapping[str, str]:
        return self._own if origin(url) == self._endpoint else {}


def _at(place: RemoteFile) -> HubPlace:
    at = hub_place(place)
    if at is None:
        raise CheckpointError(
            f"{place}: is no model on the hub; write hf://ORG/MODEL, where needed with @REVISION after it, "
            "and then /FILE.safetensors"
        )
    return at


def _hub(place: RemoteFile) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise missing(place, "huggingface_hub") from None
    return huggingface_hub


def _asked(place: RemoteFile, at: HubPlace, hub: ModuleType) -> Any:
    """Return the hub's description of a repository; tried again like any read."""
    patience, failures = Patience(), 0
    while True:
        try:
            return hub.HfApi().model_info(
                at.repository, revision=at.revision or None, files_metadata=True, timeout=30
            )
        except Exception as e:  # of whatever HTTP library it uses
            answer = getattr(e, "response", None)
            status = getattr(answer, "status_code", None)
            if status is not None and status not in _PASSING:
                raise CheckpointError(_refused(place, at, hub, e, status)) from None
            failures += 1
            if status is None and failures > 1:
                here = f"{nothing_here(place.given)}, and " if place.given else f"{place}: "
                raise CheckpointError(
                    f"{here}the hub ({hub.constants.ENDPOINT}) cannot be reached ({type(e).__name__})"
                ) from None
            why = f"HTTP {status}" if status else type(e).__name__
            trouble = Trouble(f"the hub ({hub.constants.ENDPOINT}) gives no answer: {why}")
            patience.wait(place, trouble, failures)


def _refused(place: RemoteFile, at: HubPlace, hub: ModuleType, error: Exception, status: int) -> str:
    page = f"{hub.constants.ENDPOINT}/{quote(at.repository)}"
    if isinstance(error, hub.errors.GatedRepoError):
        return f"{place}: its authors give it out on terms: accept them at {page}, then run 'hf auth login'"
    if isinstance(error, hub.errors.RevisionNotFoundError):
        return f"{place}: {at.repository} has no revision {at.revision or 'main'}"
    if isinstance(error, hub.errors.RepositoryNotFoundError) or status in (401, 403, 404):
        here = f"{nothing_here(place.given)}, and " if place.given else f"{place}: "
        return (
            f"{here}the hub has no model {at.repository}, or one that is only shown after 'hf auth login' "
            f"(HTTP {status} from {hub.constants.ENDPOINT})"
        )
    return f"{place}: the hub ({hub.constants.ENDPOINT}) answers HTTP {status}"
