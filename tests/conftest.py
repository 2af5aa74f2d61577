"""Settings and fixtures of all tests."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from inputs import FLOATS, short

# The same examples on every run: a red test is red for everyone.
settings.register_profile("repo", deadline=None, max_examples=40, derandomize=True, database=None)
settings.register_profile("search", deadline=None, max_examples=2000, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repo"))


@pytest.fixture(params=FLOATS, ids=short)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each float dtype that the ops take."""
    return request.param


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN, or the largest integer: reading one before writing it shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
