"""Tests against a real ComfyUI checkout.

    COMFYUI_PATH=path/to/ComfyUI python -m pytest tests/comfyui_real

Its requirements must be installed beside this package's, torch as it is; without a GPU everything runs on the
CPU. Written for ComfyUI 0.33 and newer. Nothing is written into the checkout.
"""

import os
from pathlib import Path

import pytest
from comfyui_server import HERE, Worker


def pytest_collection_modifyitems(items):
    """Skip what is in this folder where there is no ComfyUI."""
    if os.environ.get("COMFYUI_PATH"):
        return
    skip = pytest.mark.skip(reason="COMFYUI_PATH names no ComfyUI checkout")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


def _worker(folder: Path):
    worker = Worker(folder)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """A worker with ComfyUI as it is."""
    yield from _worker(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """A worker with the node pack's hooks."""
    for worker in _worker(tmp_path_factory.mktemp("packed")):
        assert worker.call("loading", "with_pack") == []
        yield worker


@pytest.fixture(scope="session")
def tiny(stock, tmp_path_factory):
    """A function that gives the file of a family's tiny model, in bfloat16."""
    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = folder / f"{family}.safetensors"
            stock.call("families", "build", name=family, path=made[family])
        return made[family]

    return of
