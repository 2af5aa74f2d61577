"""What people give instead of a checkpoint."""

import pytest
import torch
from models import block_weights, save

from convert_to_quant.converter.cli.main import main
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats.errors import CheckpointError

CONTENTS = {
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>" + b" " * 500, "a web page, not a model"),
    "error page": (b"<?xml version='1.0'?><Error/>", "a web page, not a model"),
    "gguf": (b"GGUF" + b"\x03\0\0\0" * 9, "a GGUF file, which other programs quantized"),
    "gzip": (b"\x1f\x8b" + b"\xff" * 30, "a gzip archive"),
    "json": (b'{"a": 1}' + b" " * 40, "JSON, not a safetensors file"),
    "empty": (b"", "is empty"),
    "noise": (b"\xff" * 40, "truncated or not a safetensors file"),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
def test_files_of_other_kinds_are_called_by_their_name(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


PATHS = {
    "https://huggingface.co/a/b/resolve/main/m.safetensors": "hf://a/b/m.safetensors: the hub is not asked",
    "black-forest-labs/FLUX.1-dev": "no folder black-forest-labs; the hub is not asked (HF_HUB_OFFLINE",
    "models/FLUX.1-dev": "no such file or folder; a model on the Hugging Face Hub is named hf://models/FLUX.1-dev",
    "modls/sub/m.safetensors": "there is no folder modls; did you mean models?; the hub is not asked",
    "s4://bucket/m.safetensors": "no way to read s4:// is known",
    "hf://a": "is no model on the hub; write hf://ORG/MODEL",
    "nowhere/m.safetensors": "there is no folder nowhere",
    "modls/m.safetensors": "did you mean models?",
    "models/M.safetensor": "did you mean models/m.safetensors?",
    "models/quite-else.bin": "no such file or folder",
    "models/": "no .safetensors file in this folder; name a file, as w.ckpt",
}


@pytest.mark.parametrize(("path", "message"), PATHS.items())
def test_a_path_with_nothing_at_it_is_answered(tmp_path, monkeypatch, capsys, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    if path == "models/":
        torch.save({"a": torch.ones(2)}, tmp_path / "models" / "w.ckpt")
    else:
        save(tmp_path / "models" / "m.safetensors", block_weights())
    assert main(["-i", path]) == 1
    assert message in capsys.readouterr().err
