"""Settings and fixtures of all tests."""

import contextlib
import getpass
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from inputs import FLOATS, short

# The same examples on every run: a red test is red for everyone.
settings.register_profile("repo", deadline=None, max_examples=40, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=2000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repo"))

# Importing torch._dynamo makes this folder, by default in the temporary one, where it stays.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "torchinductor"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE))

# No test asks the Hugging Face Hub: those of the hub bring one of their own.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(params=FLOATS, ids=short)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each float dtype that the ops take."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let SIGINT interrupt, which is ignored in what a shell starts with "&"."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers on every run and on every worker, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the run and its processes a temporary folder of their own; what is left there fails the run."""
    folder, before = tmp_path_factory.mktemp("temporary"), os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    yield
    tempfile.tempdir = before
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    assert sorted(p.name for p in folder.iterdir()) == [], "left in the temporary folder"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder of pytest's own temporary folders when a passed run leaves nothing in it."""
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()
    folder = Path(root) / f"pytest-of-{getpass.getuser()}"
    with contextlib.suppress(OSError):
        if not (folder / "pytest-current").exists():
            (folder / "pytest-current").unlink(missing_ok=True)
        folder.rmdir()


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN, or the largest integer: reading one before writing it shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
