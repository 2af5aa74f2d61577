"""The bench that compares the host time of two trees: it must load the tree that it is told to."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Tree = runpy.run_path(str(ROOT / "bench" / "launch" / "compare.py"))["Tree"]


def test_every_package_is_found_in_the_tree_that_is_named(tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for folder in folders.values():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    tree = Tree(tmp_path)
    found = {name: tree.find_spec(name).origin for name in folders}
    assert found == {name: str(tmp_path / folder / "__init__.py") for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["torch", "convert_to_quant.kernels.rowwise"])
def test_everything_else_is_left_to_python(name):
    assert Tree(ROOT).find_spec(name) is None
