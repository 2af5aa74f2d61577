"""Which files a workflow may name."""

import os
import sys

import pytest
from hosted_model import PACK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OUTSIDE = [
    "", "  ", ".", "..", "../a", "a/../../b", "a/..", "/etc/passwd", "//host/share/a", "\\\\host\\share",
    "C:\\a", "C:a", "c:/a", "a:stream", "~/a", "a\\..\\..\\b", "a/./b", "a//b", "/", "a\0b", "a\nb", "NUL",
    "con.safetensors", "x/LPT1.txt", "a. ", "dir. /a", "..\\a", "...", "%2e%2e/..",
]  # fmt: skip


@pytest.fixture
def places(pack, base):
    return sys.modules[f"{PACK}.places"]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_names_that_lead_elsewhere_are_refused(places, name):
    """For writing and for reading, before the disk is asked."""
    for take in (places.relative, places.new_file, places.calibration_file):
        with pytest.raises(ValueError, match="file name"):
            take(name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "é", "/", "\\", ":", "C:", "~", "\0", " ", "%year%"])))
def test_whatever_is_taken_lies_below_the_folder(places, base, parts):
    name = "".join(parts)
    try:
        path = places.new_file(name)
    except ValueError:
        return
    assert os.path.commonpath((base / "output", os.path.realpath(path))) == str(base / "output")
    assert path.name.endswith("_00001_.safetensors")


def test_a_link_leads_no_further(places, base, tmp_path_factory):
    """Neither a folder that is a link, nor a file."""
    away = tmp_path_factory.mktemp("away")
    (away / "x_00001_.safetensors").write_bytes(b"")
    (base / "output" / "out").symlink_to(away)
    (base / "output" / "calibration").mkdir()
    (base / "output" / "calibration" / "l.safetensors").symlink_to(away / "x_00001_.safetensors")
    with pytest.raises(ValueError, match="leads out of output"):
        places.new_file("out/x")
    with pytest.raises(ValueError, match="leads out of calibration"):
        places.calibration_file("l.safetensors")
    assert places.calibration_files() == []
    assert sorted(p.name for p in away.iterdir()) == ["x_00001_.safetensors"]


def test_nothing_is_overwritten(places, base):
    """A number counts up, also past a dangling link; the folder itself may be a link."""
    first = places.new_file("a/b.safetensors")
    assert first == base / "output" / "a" / "b_00001_.safetensors"
    first.write_bytes(b"mine")
    second = places.new_file("a\\b")
    assert second.name == "b_00002_.safetensors"
    second.symlink_to(base / "nowhere")
    assert places.new_file("a/b").name == "b_00003_.safetensors"
    assert first.read_bytes() == b"mine"
    assert places.below_output(first) == "a/b_00001_.safetensors"


def test_an_output_folder_that_is_a_link(places, base, tmp_path_factory):
    """A person's own link, not a workflow's."""
    disk = tmp_path_factory.mktemp("disk")
    (base / "output").rmdir()
    (base / "output").symlink_to(disk)
    assert places.new_file("a").parent == disk


def test_calibrations_are_found_by_file_and_by_recorder(places, base):
    own, models = base / "output" / "calibration", base / "models" / "calibration"
    for folder in (own / "sub", models):
        folder.mkdir(parents=True)
    first, second = "cal_00001_.safetensors", "cal_00002_.safetensors"
    for time, path in enumerate([own / first, own / second, own / "sub" / "x.json", models / "m.json"]):
        path.write_bytes(b"")
        os.utime(path, (time, time))
    (own / "notes.txt").write_bytes(b"")
    assert places.calibration_files() == ["m.json", "sub/x.json", second, first]
    assert places.calibration_file("cal") == own / second
    assert places.calibration_file(first) == own / first
    assert places.calibration_file("sub/x.json") == own / "sub" / "x.json"
    assert places.calibration_file("m.json") == models / "m.json"
    assert places.calibration_file("ca") is None
    assert places.calibration_file("output") is None
