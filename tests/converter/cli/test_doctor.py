"""``ctq doctor``: what is here, and what will run how."""

import json
from pathlib import Path

import pytest
import torch

from convert_to_quant.converter.cli import examine as doctor
from convert_to_quant.converter.cli.install_nodes import FOLDER, install
from convert_to_quant.converter.cli.main import main
from convert_to_quant.kernels import explain
from convert_to_quant.version import VERSION


@pytest.fixture
def alone(monkeypatch, tmp_path) -> Path:
    """No ComfyUI in any of the usual places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path


def comfyui(folder: Path, version: str | None = "0.33.1") -> Path:
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").write_text("")
    if version:
        (folder / "comfyui_version.py").write_text(f'# made by a script\n__version__ = "{version}"\n')
    return folder


def lines(topic: str, found: list[doctor.Finding]) -> list[str]:
    return [f.text for f in found if f.topic == topic]


def test_versions_and_formats_are_told(alone):
    found = doctor.examine()
    assert lines("convert_to_quant", found)[0].startswith(VERSION)
    assert lines("torch", found)[0].startswith(torch.__version__)
    assert lines("gpu", found)
    assert "int8_tensorwise, " in lines("formats", found)[0]
    assert "int8_blockwise (node pack)" in lines("formats", found)[0]
    assert lines("comfyui", found) == ["none found; name one with --comfyui PATH"]


def test_a_comfyui_is_found_with_its_version_and_the_node_pack(alone, monkeypatch):
    usual, named = comfyui(alone / "ComfyUI"), comfyui(alone / "named", None)
    install(named)
    assert lines("comfyui", doctor.examine([named])) == [
        f"of unknown version in {named}, with the node pack",
        "0.33.1 in ComfyUI, no node pack (ctq install-nodes ComfyUI)",
    ]
    monkeypatch.setenv("COMFYUI_PATH", str(usual))
    assert len(lines("comfyui", doctor.examine())) == 1, "the same folder under two names is one"


def test_what_should_be_mended_is_a_fault(alone, capsys):
    broken = comfyui(alone / "broken")
    (broken / "custom_nodes" / FOLDER).symlink_to(alone / "gone", target_is_directory=True)
    assert main(["doctor", "--comfyui", str(broken), "--comfyui", str(alone), "--json"]) == 1
    faults = [f["text"] for f in json.loads(capsys.readouterr().out) if f["fault"]]
    assert any("leads nowhere" in text for text in faults)
    assert f"{alone}: no ComfyUI (no main.py and custom_nodes in it)" in faults


def test_the_command_prints_a_line_each(alone, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-package": "nothing"})
    monkeypatch.setattr(doctor, "_torch", lambda: iter(()))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "no-such-package   not installed (nothing)" in out


def test_a_device_says_what_serves_it(monkeypatch):
    """A card that the kernels do not know is a fault, with the reason; a known one names its family."""
    from types import SimpleNamespace

    card = SimpleNamespace(name="Card", total_memory=24 << 30)
    assert explain.served_by(torch.device("cpu")) == ("PyTorch", "the kernels are for GPUs")
    for answer, text, fault in (
        (("Triton", "sm90"), "cuda:0: Card, 24 GiB; quantized linears run in Triton (sm90)", False),
        (("PyTorch", "too old"), "cuda:0: Card, 24 GiB; plain PyTorch: too old", True),
    ):
        monkeypatch.setattr(explain, "served_by", lambda device, answer=answer: answer)
        assert doctor._device(torch.device("cuda:0"), card) == doctor.Finding("gpu", text, fault)


def test_a_missing_triton_is_the_reason(monkeypatch):
    monkeypatch.setattr(explain, "_find", lambda target: (None, "Triton cannot be imported"))
    assert explain.served_by(torch.device("cuda:0")) == ("PyTorch", "Triton cannot be imported")
