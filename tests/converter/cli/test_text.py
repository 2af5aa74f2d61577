"""Names out of files are shown, not obeyed: no markup, no terminal escapes, in any command and in the bar."""

import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import block_weights, save

from convert_to_quant.converter.cli.bar import Bar
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cli.text import plain

NASTY = "[/red][bold]\x1b[31m\u202e:smile:\r\x07"


@pytest.fixture
def model(tmp_path):
    tensors = block_weights()
    return save(
        tmp_path / "m.safetensors", {n.replace("blocks.", f"blocks{NASTY}."): t for n, t in tensors.items()}
    )


@given(st.text(max_size=40))
def test_what_is_shown_is_printable_and_tells_what_there_was(text):
    shown = plain(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown == text or len(shown) > len(text)


@pytest.mark.parametrize(
    "command",
    [
        ["-i", "{m}", "-o", "{e}", "--report-quality"],
        ["-i", "{m}", "--dry-run"],
        ["inspect", "{q}"],
        ["verify", "{m}", "{q}", "--all"],
        ["edit", "{q}", "-o", "{e}", "--add-keys", '"note": 1'],
    ],
    ids=["convert", "dry run", "inspect", "verify", "edit"],
)
def test_every_command_shows_names_as_they_are(model, tmp_path, capsys, command):
    places = {"m": model, "q": tmp_path / "q.safetensors", "e": tmp_path / "e.safetensors"}
    assert main(["-i", str(model), "-o", str(places["q"])]) == 0
    capsys.readouterr()
    assert main([part.format(**places) if "{" in part else part for part in command]) == 0
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\x07" not in shown
    if "inspect" not in command:
        assert "[/red]" in shown


def test_an_error_names_it_escaped(tmp_path, capsys):
    assert main(["-i", str(tmp_path / f"none{NASTY}.safetensors")]) == 1
    shown = capsys.readouterr().err
    assert r"\x1b[31m" in shown
    assert "\x1b" not in shown


def test_the_bar_takes_any_name():
    bar = Bar()
    bar.start(10, 0)
    bar.advance(NASTY, 5)
    bar._bar.refresh()
    bar.stop()
    assert bar._bar.tasks[0].fields["layer"].isprintable()


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="no pseudo terminal here")
def test_a_conversion_in_a_terminal_ends_well(model, tmp_path):
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "convert_to_quant",
        "-i",
        str(model),
        "-o",
        str(tmp_path / "q.safetensors"),
    ]
    done = subprocess.Popen(command, stderr=follower, stdout=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    assert done.wait() == 0
    assert b"Traceback" not in shown
    assert b"\x07" not in shown
    assert "\u202e".encode() not in shown


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:
        return b""
