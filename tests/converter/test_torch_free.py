"""A plan is made from a header alone, and without loading torch (2 s of a dry run's time)."""

import subprocess
import sys

import catalogs

from convert_to_quant import kernels
from convert_to_quant.files import dtypes
from convert_to_quant.formats import convrot as contract


def test_the_planning_path_does_not_import_torch():
    modules = ("cli.main", "preview.dry_run", "plan.build", "cli.show", "cli.show_plan")
    imports = ", ".join(f"convert_to_quant.converter.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=catalogs.REPOSITORY).returncode == 0


def test_the_ground_floor_does_not_import_torch():
    """Its functions that handle tensors load it when they are called."""
    files = [f for room in ("files", "formats", "names") for f in (catalogs.REPOSITORY / room).glob("*.py")]
    modules = (".".join(("convert_to_quant", f.parent.name, f.stem)).removesuffix(".__init__") for f in files)
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=catalogs.REPOSITORY).returncode == 0


def test_the_format_and_the_kernels_rotate_by_the_same_groups():
    assert contract.GROUPS == kernels.GROUPS
    assert contract.PREFERRED_GROUPS == kernels.PREFERRED_GROUPS
    for columns in (1, 12, 16, 48, 64, 100, 2432, 3072, 4096):
        assert contract.largest_group(columns) == kernels.largest_group(columns)


def test_sizes_are_those_of_torch():
    known = {name: dtypes.torch_dtype(name) for name in dtypes.BITS}
    for name, dtype in known.items():
        assert dtype is None or dtype.itemsize * 8 == dtypes.BITS[name], name
    assert sum(dtype is not None for dtype in known.values()) == 13
