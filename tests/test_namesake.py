"""Another tool's files under our import name are told of on import and by --version."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convert_to_quant.version import DISTRIBUTION, VERSION

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("files", "formats", "kernels", "quant", "converter")
TOLD = "two tools named convert_to_quant are installed here"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages folder as an installation makes it."""
    package = tmp_path / "site" / "convert_to_quant"
    shutil.copytree(ROOT / "convert_to_quant", package, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ROOMS:
        (package / room).symlink_to(ROOT / room, target_is_directory=True)
    return package.parent


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=site, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_alone_it_says_nothing(site):
    done = run(site, "-m", "convert_to_quant", "--version")
    assert done.stdout == f"convert_to_quant {VERSION} ({DISTRIBUTION})\n"
    assert done.stderr == ""
    assert Path(run(site, "-c", "import convert_to_quant as c; print(c.__file__)").stdout).is_relative_to(
        site
    )


def test_files_of_the_other_tool_in_the_same_folder(site):
    (site / "convert_to_quant" / "convert_to_quant.py").touch()
    done = run(site, "-c", "import convert_to_quant; from convert_to_quant import namesake; namesake.warn()")
    assert done.stderr.count(TOLD) == 1, "one warning per process"
    assert str(site / "convert_to_quant") in done.stderr
    assert f"pip uninstall convert_to_quant {DISTRIBUTION}" in done.stderr
    assert done.stderr.startswith("<string>:1: UserWarning"), (
        "at the line that imports, not inside the package"
    )


def test_version_tells_it_too(site):
    (site / "convert_to_quant" / "convert_to_quant.py").touch()
    done = run(site, "-m", "convert_to_quant", "--version")
    assert done.stdout.startswith(f"convert_to_quant {VERSION} ({DISTRIBUTION})\nwarning: {TOLD}")
    assert done.stderr.count(TOLD) == 1


@pytest.mark.parametrize("module", ["converter.cli.main", "runtime"])
def test_the_other_tool_installed_later_has_replaced_our_init(site, module):
    (site / "convert_to_quant" / "convert_to_quant.py").touch()
    (site / "convert_to_quant" / "__init__.py").write_text("")
    done = run(site, "-c", f"import convert_to_quant.{module}")
    assert done.stderr.count(TOLD) == 1


def test_the_other_tool_elsewhere_on_the_path(site, tmp_path):
    other = tmp_path / "other" / "convert_to_quant"
    other.mkdir(parents=True)
    (other / "convert_to_quant.py").touch()
    code = f"import sys; sys.path.append({str(other.parent)!r}); import convert_to_quant"
    assert str(other) in run(site, "-c", code).stderr
