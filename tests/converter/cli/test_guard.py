"""How commands end when the system refuses something: one line, an exit code, no trace."""

import contextlib
import errno
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import block_weights, save

from convert_to_quant.converter.cli.calibrate import main as calibrate_main
from convert_to_quant.converter.cli.guard import guarded
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.failures import in_words
from convert_to_quant.quantization import convert_to_int8

PROGRAM = [sys.executable, "-m", "convert_to_quant"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("m") / "m.safetensors", block_weights())


@pytest.fixture(scope="module")
def quantized(model):
    convert_to_int8(model, model.with_name("int8.safetensors"))
    for module in ("verify.run", "verify.html", "edit.run", "cli.show_verify", "cli.show_edit", "cli.bar"):
        importlib.import_module(f"convert_to_quant.converter.{module}")  # another user may not read them
    return model.with_name("int8.safetensors")


def run(*argv, **kwargs):
    """Run the program: (exit code, stdout, lines of stderr)."""
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    done = subprocess.run([*PROGRAM, *map(str, argv)], text=True, timeout=100, **kwargs)
    return done.returncode, done.stdout or "", (done.stderr or "").splitlines()


class Finalized:
    """Something whose finalizer is interrupted: what it raises is dropped by Python."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_a_finalizer_swallowed_still_stops_the_command(capsys):
    hook = sys.unraisablehook

    def command():
        for _ in range(3):
            Finalized()  # dies at once, and the interrupt with it
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass
        return 0

    assert guarded(command) == 130
    err = capsys.readouterr().err
    assert err.startswith("interrupted: ")
    assert "Traceback" not in err
    assert sys.unraisablehook is hook


def test_an_interrupt_swallowed_in_a_command_that_ends_does_not_come_later():
    def command():
        Finalized()
        return 7

    assert guarded(command) in (7, 130)
    time.sleep(0.2)  # one that came after the command would stop this


def test_other_things_that_finalizers_raise_are_told_as_ever(monkeypatch):
    class Broken:
        def __del__(self):
            raise ValueError("lost")

    def command():
        Broken()
        return 0

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(repr(dropped.exc_value)))
    assert guarded(command) == 0
    assert told == ["ValueError('lost')"]


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 1, "x: Too many open files; allow this process"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 1, "x: File name too long"),
        (MemoryError(), 1, "not enough memory; --low-memory takes less"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."),
            1,
            "not enough memory for 1,024 MiB more; --low-memory takes less",
        ),
        (RecursionError("maximum recursion depth"), 1, "unexpected RecursionError"),
        (KeyError("x\n\x1b[31m"), 1, "unexpected KeyError"),
        (KeyboardInterrupt(), 130, "interrupted: no output was written"),
        (KeyboardInterrupt("begins again"), 130, "interrupted: begins again"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
def test_every_failure_is_one_line_and_a_code(capsys, failure, code, line):
    def fail():
        raise failure

    assert guarded(fail) == code
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors.count("\n") == 1
    assert line in errors
    assert "\x1b" not in errors


def test_the_trace_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("CONVERT_TO_QUANT_TRACEBACK", "1")

    def fail():
        raise KeyError("x")

    assert guarded(fail) == 1
    assert "Traceback" in capsys.readouterr().err


def test_words_name_the_line_that_failed():
    with pytest.raises(ZeroDivisionError) as e:
        _ = 1 / 0
    assert f"at {Path(__file__).name}:" in in_words(e.value)


def commands(model, quantized, place):
    """Every command that writes, with `place` as what it writes."""
    return {
        "convert": ["-i", model, "-o", place],
        "json": ["-i", model, "-o", model.with_name("q.safetensors"), "--json", place],
        "dry run": ["-i", model, "--dry-run", "--json", place],
        "template": ["-i", model, "--dry-run", "create-template", "-o", place.with_suffix(".json")],
        "edit": ["edit", quantized, "-o", place],
        "edit json": ["edit", quantized, "--dry-run", "--json", place],
        "verify json": ["verify", model, quantized, "--json", place],
        "verify html": ["verify", model, quantized, "--html", place],
    }


COMMANDS = list(commands(Path("m"), Path("q"), Path("p")))


@contextlib.contextmanager
def as_nobody(*folders):
    """Run the block as a user who may enter `folders` and owns nothing: root would be refused nothing."""
    if os.geteuid():
        yield
        return
    above = [p for folder in folders for p in (folder, *folder.parents)]
    opened = {p: p.stat().st_mode for p in above if not p.stat().st_mode & 0o001}
    for path, mode in opened.items():
        path.chmod(mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in opened.items():
            path.chmod(mode)


PLACES = ["read-only folder", "missing folder", "file for folder", "long name", "folder", "pipe", "device"]


@pytest.mark.parametrize("command", [*COMMANDS, "calibrate"])
@pytest.mark.parametrize("where", PLACES)
def test_places_that_cannot_be_written_end_every_command_in_one_line(
    tmp_path, model, quantized, capfd, command, where
):
    folder = tmp_path / "folder"
    folder.mkdir()
    place = {
        "missing folder": tmp_path / "none" / "x",
        "file for folder": model / "x",
        "long name": tmp_path / ("x" * 251),
        "folder": folder,
        "device": Path("/dev/full"),
    }.get(where, folder / "x")
    if command == "template" and where in ("pipe", "folder", "device"):
        folder = folder.with_suffix(".json")
        folder.mkdir()
        place = folder if where == "folder" else folder / "x"
        if where == "device":
            place.with_suffix(".json").symlink_to("/dev/full")
    if where == "pipe":
        os.mkfifo(place.with_suffix(".json") if command == "template" else place)
    if where == "read-only folder":
        folder.chmod(0o555)
    before = sorted(p.name for p in tmp_path.iterdir())
    with as_nobody(tmp_path, model.parent) if where == "read-only folder" else contextlib.nullcontext():
        if command == "calibrate":
            code = calibrate_main(["-i", str(model), "-o", str(place)])
        else:
            code = main([str(a) for a in commands(model, quantized, place)[command]])
    _, errors = capfd.readouterr()
    assert code == 1
    lines = [line for line in errors.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, errors
    assert "unexpected" not in lines[0]
    assert "Traceback" not in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("what", ["model", "folder"])
def test_inputs_that_another_user_may_not_read(tmp_path, model, capfd, what):
    model = Path(shutil.copy(model, tmp_path))
    target = model if what == "model" else tmp_path
    model.chmod(0 if what == "model" else 0o644)
    with as_nobody(tmp_path):
        codes = [main([*argv, str(target)]) for argv in (["inspect"], ["--dry-run", "-i"], ["-i"])]
    _, errors = capfd.readouterr()
    if what == "model":
        assert codes == [1, 1, 1]
        assert errors.splitlines() == [f"error: {model}: cannot be read: Permission denied"] * 3
    assert "Traceback" not in errors


STREAMS = {
    "stdout closed": lambda: os.close(1),
    "stdout and stderr closed": lambda: os.closerange(1, 3),
    "all closed": lambda: os.closerange(0, 3),
    "stdout full": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1),
    "both full": lambda: (os.dup2(os.open("/dev/full", os.O_WRONLY), 1), os.dup2(1, 2)),
    "reader gone": lambda: broken_pipe(),
}


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


@pytest.mark.parametrize("streams", STREAMS)
def test_standard_streams_that_are_closed_full_or_left(tmp_path, model, quantized, streams):
    """The file is whole all the same, and nothing that a library prints has got into it."""
    output = tmp_path / "q.safetensors"
    code, _, errors = run("-i", model, "-o", output, preexec_fn=STREAMS[streams])
    assert code == (141 if streams == "reader gone" else 1)
    assert output.read_bytes() == quantized.read_bytes()
    errors = [line for line in errors if not line.startswith("note: ")]
    if streams in ("stdout closed", "stdout full"):
        assert len(errors) == 1
        assert errors[0].startswith("error: standard output cannot be written: ")
    else:
        assert errors == []


def test_a_limit_on_the_size_of_files(tmp_path, model):
    limit = (resource.RLIMIT_FSIZE, (100_000, 100_000))
    code, out, errors = run("-i", model, "-o", tmp_path / "q", preexec_fn=lambda: resource.setrlimit(*limit))
    assert (code, out) == (1, "")
    assert len(errors) == 1, errors
    assert "File too large" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(tmp_path, model, quantized):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets no test mount a small disk")
    try:
        with contextlib.suppress(OSError), open(disk / "filler", "wb") as f:
            while True:
                f.write(b"\0" * 4096)
                f.flush()
        for argv in commands(model, quantized, disk / "x").values():
            assert main([str(a) for a in argv]) == 1, argv
        assert calibrate_main(["-i", str(model), "-o", str(disk / "c.json")]) == 1
        assert [p.name for p in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
