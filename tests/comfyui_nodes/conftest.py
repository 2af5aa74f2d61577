"""The node pack, beside a stand-in for ComfyUI and the real comfy-kitchen."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hosted_model import PACK
from peers import peer

from convert_to_quant.converter.cli import install_nodes

STANDIN = Path(__file__).parents[1] / "support" / "standin"


def _is_host(name: str) -> bool:
    return name.partition(".")[0] in ("comfy", "folder_paths", "nodes")


@pytest.fixture
def comfy(monkeypatch):
    """The stand-in importable as ComfyUI is, fresh for each test."""
    peer("comfy_kitchen.tensor")
    monkeypatch.syspath_prepend(str(STANDIN))
    for name in [n for n in sys.modules if _is_host(n)]:
        monkeypatch.delitem(sys.modules, name)
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import comfy.quant_ops

    yield comfy
    for name in [n for n in sys.modules if _is_host(n)]:
        del sys.modules[name]


@pytest.fixture
def base(comfy, tmp_path):
    """ComfyUI's base folder: output/, temp/ and models/ in it."""
    import folder_paths

    folder_paths.use(tmp_path)
    return tmp_path


@pytest.fixture
def pack(comfy, monkeypatch):
    """The folder loaded as ComfyUI loads a custom node: by its path, under a name of its own."""
    folder = install_nodes.source_folder()
    spec = importlib.util.spec_from_file_location(
        PACK, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, PACK, module)
    spec.loader.exec_module(module)
    yield module
    sys.modules[f"{PACK}.routing"].ROUTER.set("off")
    sys.modules[f"{PACK}.hooks"].uninstall()
    for sub in [n for n in sys.modules if n.startswith(PACK + ".")]:
        del sys.modules[sub]
