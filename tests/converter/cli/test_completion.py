"""Completion scripts, run by the shells that are there."""

import shutil
import subprocess

import pytest

from convert_to_quant.converter.cli.main import COMMANDS, main

CASES = {
    "ctq --format w": {"w4a8", "w6a8"},
    "ctq ver": {"verify"},
    "ctq --no-ver": {"--no-verify"},
    "ctq verify --th": {"--threshold"},
    "ctq verify --no-ver": set(),
    "convert_to_quant edit --deq": {"--dequantize"},
    "ctq recipe --scaling_mode b": {"block"},
    "ctq completion z": {"zsh"},
}

RUN = {
    "bash": '. ./script; COMP_WORDS=({words}); COMP_CWORD={last}; _ctq; printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "source script; complete -C '{line}' | cut -f 1",
}


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", RUN)
def test_the_shell_completes(tmp_path, capsys, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "script").write_text(script(shell, capsys))
    for line, wanted in CASES.items():
        words = line.split()
        code = RUN[shell].format(words=line, last=len(words) - 1, line=line)
        done = subprocess.run([shell, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (done.stderr, set(done.stdout.split())) == ("", wanted), line


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_has_no_fault_of_syntax(tmp_path, capsys, shell):
    text = script(shell, capsys)
    assert all(name in text for name in COMMANDS)
    assert "--quality-threshold" in text
    assert "--quality_threshold" not in text, "one spelling is enough"
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_is_told_the_known_ones(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "ctq completion bash|zsh|fish" in capsys.readouterr().err
