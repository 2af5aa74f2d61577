"""Waits of a thousandth of their length."""

import pytest

from convert_to_quant.files.remote import source


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FIRST_WAIT", 0.001)
