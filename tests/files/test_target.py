"""Where a file may be written: by what is there, not by what it is called."""

import os
import socket
import stat

import pytest

from convert_to_quant.files.atomic import new_file
from convert_to_quant.files.report import require_report, save_html, save_json
from convert_to_quant.files.target import require_scratch, require_target
from convert_to_quant.formats.errors import ConversionError


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"weights")
    return path


def other_names(source):
    """The ways to reach one file."""
    link, hard = source.with_name("link"), source.with_name("hard")
    link.symlink_to(source)
    os.link(source, hard)
    folder = source.parent / "folder"
    folder.symlink_to(source.parent)
    return [source, link, hard, folder / source.name, source.parent / "x" / ".." / source.name]


def test_an_input_is_no_target_by_any_name(source):
    (source.parent / "x").mkdir()
    for name in other_names(source):
        with pytest.raises(ConversionError, match="the output is the input"):
            require_target(name, [source])
    assert source.read_bytes() == b"weights"


def make(kind, path):
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
    elif kind == "a device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this user makes no devices")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")


KINDS = ["a pipe", "a socket", "a device", "a folder", "a symbolic link"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    path = tmp_path / "o"
    make(kind, path.relative_to(tmp_path))
    before = os.lstat(path)
    for write in (require_target, require_report):
        with pytest.raises(ConversionError, match=kind):
            write(path)
    with pytest.raises(ConversionError, match=kind), new_file(path):
        pass
    if kind != "a folder":
        with pytest.raises(ConversionError, match=kind):
            require_scratch(path, tmp_path / "q")
    assert os.lstat(path).st_ino == before.st_ino
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConversionError, match="none: no such folder"):
        require_target(tmp_path / "none" / "q")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match="file"):
        require_target(tmp_path / "file" / "q")


def test_work_is_not_done_in_an_input_nor_in_a_file_with_two_names(source):
    with pytest.raises(ConversionError, match=r"is an input, and the name under which q would be written"):
        require_scratch(source, source.with_name("q"), [source])
    os.link(source, source.with_name("q.part"))
    with pytest.raises(ConversionError, match="a file with a second name"):
        require_scratch(source.with_name("q.part"), source.with_name("q"))


def test_a_file_that_comes_meanwhile_stays(tmp_path):
    path = tmp_path / "a"

    def write():
        with new_file(path, overwrite=False) as f:
            f.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(ConversionError, match="exists"):
        write()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_two_who_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with new_file(path) as one, new_file(path) as other:
        one.write(b"1" * 100_000)
        other.write(b"2" * 100_000)
    assert path.read_bytes() == b"1" * 100_000, "the last to end"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_replaces_reports_only(tmp_path):
    """A report is asked for again and again; what else has its name is not ours to replace."""
    for path, save in ((tmp_path / "r.json", lambda p: save_json(p, {"a": 1})), (tmp_path / "r.html", page)):
        save(path)
        save(path)
        path.write_text("")
        save(path)
        path.write_text('{"mine": "convert_to_quant"}')
        with pytest.raises(ConversionError, match="is no report of this program"):
            save(path)
        assert path.read_text() == '{"mine": "convert_to_quant"}'
    require_report(None)


def page(path):
    save_html(path, "<!doctype html><title>t</title>")
