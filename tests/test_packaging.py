"""What is told in two places agrees, and the archives hold what they must."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import convert_to_quant
from convert_to_quant.kernels import _library
from convert_to_quant.version import DISTRIBUTION, VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
IGNORED = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().split())]

# What a source archive needs besides the packages, for its tests and for `make`.
FOLDERS = (".ci", ".github", "bench", "docs", "examples", "tests")
FILES = (
    ".ci/run",
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
)


def text(name: str) -> str:
    return (ROOT / name).read_text()


# Told in two places


def test_the_name_and_the_version():
    assert PROJECT["project"]["name"] == DISTRIBUTION
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert convert_to_quant.__version__ == VERSION


def test_the_changelog_knows_the_version():
    """A development version stands above the newest release, whose changes are under Unreleased."""
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.M)
    assert headings[0] == "Unreleased"
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d", heading)[1] for heading in headings[1:]]
    order = [tuple(map(int, version.split("."))) for version in released]
    assert order == sorted(order, reverse=True)
    version, _, development = VERSION.partition(".dev")
    if development:
        assert tuple(map(int, version.split("."))) > order[0]
    else:
        assert version == released[0]


def test_the_oldest_triton():
    """What pip accepts is what the kernels accept, and what the documentation says."""
    oldest = ".".join(map(str, _library._OLDEST_TRITON))
    bounds = [line.partition(";")[0] for line in PROJECT["project"]["dependencies"] if "triton" in line]
    assert bounds == [f"triton>={oldest}", f"triton-windows>={oldest}"]
    assert f"older than {oldest}," in text("docs/kernels.md")


def test_ruff_is_the_same_before_a_commit_and_in_make_check():
    (pinned,) = re.findall(r"^ruff==(\S+)$", text("constraints.txt"), re.M)
    hooks = re.findall(r"ruff==([^\"]+)\"", text(".pre-commit-config.yaml"))
    assert hooks == [pinned, pinned]


def test_every_folder_of_code_is_a_listed_package():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(SETUPTOOLS["package-dir"].values())
    found = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in SETUPTOOLS["package-dir"].items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(SETUPTOOLS["packages"])
    assert len(SETUPTOOLS["packages"]) == len(found), "each once"


# The archives


def test_the_archives_hold_what_they_must(tmp_path):
    """The source archive is built from a copy of the checkout, the wheel from the source archive."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*IGNORED))
    folders = (*FOLDERS, *SETUPTOOLS["package-dir"].values())
    wanted = {path.relative_to(checkout) for folder in folders for path in (checkout / folder).rglob("*.*")}
    tree = unpacked(build("sdist", checkout, tmp_path))
    assert Path("tests/data/catalogs/z-image.json") in wanted
    assert sorted(p for p in (*wanted, *FILES) if not (tree / p).exists()) == []
    assert (tree / ".ci" / "run").stat().st_mode & 0o100, "it is run as a command"

    wheel = build("wheel", tree, tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    modules = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for path in folder_of(package).glob("*.py")
    }
    data = {
        f"{package.replace('.', '/')}/{path.relative_to(folder_of(package)).as_posix()}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
    }
    assert "convert_to_quant/comfyui_nodes/example_workflows/convert.json" in data
    assert {n for n in names if ".dist-info/" not in n} == modules | data
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
    assert wheel.name == f"{DISTRIBUTION.replace('-', '_')}-{VERSION}-py3-none-any.whl"


def build(kind: str, tree: Path, output: Path) -> Path:
    """Build an archive of `tree` as pip does, but with the setuptools that is installed."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (archive,) = output.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind])
    return archive


def unpacked(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


def folder_of(package: str) -> Path:
    """Return where a package stands: the longest name in package-dir that it begins with, then the rest."""
    given = SETUPTOOLS["package-dir"]
    name = max((n for n in given if f"{package}.".startswith(f"{n}.")), key=len)
    return ROOT / given[name] / package.removeprefix(name).lstrip(".").replace(".", "/")
