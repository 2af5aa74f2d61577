"""Uploading files to a repository on the Hugging Face Hub, by huggingface_hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from ...formats.errors import ConversionError
from ...version import DISTRIBUTION

_CARD = "README.md"


def require_push(repository: str) -> None:
    """Find out before there is work to lose whether an upload can be: the package, the network, a login.

    ConversionError, saying what to do, where it cannot.
    """
    hub = _hub(repository)
    if hub.constants.HF_HUB_OFFLINE:
        raise ConversionError(f"--push-to {repository}: HF_HUB_OFFLINE is set, which forbids it")
    if hub.get_token() is None:
        raise ConversionError(f"--push-to {repository}: log in first, with 'hf auth login' or HF_TOKEN")
    with _told(repository, hub):
        hub.HfApi().whoami()


def push(repository: str, files: Mapping[str, Path], card: str, summary: str) -> tuple[str, bool]:
    """Upload files, by their names there, and a model card, as one commit; return its URL, and whether the
    card was written.

    A repository that is not there is made, as a private one. A card that is there stays as it is: people
    write them. ConversionError when the hub refuses, or is out of reach.
    """
    hub = _hub(repository)
    api = hub.HfApi()
    with _told(repository, hub):
        api.create_repo(repository, private=True, exist_ok=True)
        has_card = api.file_exists(repository, _CARD)
        operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        if not has_card:
            operations.append(hub.CommitOperationAdd(_CARD, card.encode("utf-8")))
        made = api.create_commit(repository, operations, commit_message=summary)
    return str(made.commit_url), not has_card


def _hub(repository: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ConversionError(
            f"--push-to {repository}: huggingface_hub is needed: pip install '{DISTRIBUTION}[hub]'"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _told(repository: str, hub: ModuleType) -> Iterator[None]:
    """Tell an error of the hub in one line, without the addresses and headers of its requests."""
    try:
        yield
    except Exception as e:  # of whatever HTTP library it uses
        cause: BaseException | None = e
        while cause is not None and getattr(cause, "response", None) is None:
            cause = cause.__cause__ or cause.__context__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        endpoint = hub.constants.ENDPOINT
        if status in (401, 403):
            why = f"{endpoint} does not let this login write there (HTTP {status}); see 'hf auth whoami'"
        else:
            told = f"answers HTTP {status}" if status else f"gives no answer ({type(e).__name__})"
            why = f"{endpoint} {told}"
        raise ConversionError(f"--push-to {repository}: {why}") from None
