"""Damaged files, drawn from a seed: each is refused in one line, or gives a file that others read.

FUZZ_SEED=7 FUZZ_COUNT=20000 python -m pytest tests/converter/test_fuzz.py
"""

import faulthandler
import json
import os
import random

import pytest
import torch
from lora_files import low_rank, save_lora
from models import block_weights, save, save_sharded
from mutations import bytes_changed, changed, damaged
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import convert_to_int8

SEED = int(os.environ.get("FUZZ_SEED", "0"))
COUNT = int(os.environ.get("FUZZ_COUNT", "60"))
FC1 = "blocks.0.mlp.fc1"
LONGEST = 60
"""Seconds after which a command counts as hanging: thousands of times what it takes."""


@pytest.fixture(autouse=True)
def no_hang():
    """End a run that hangs, showing where."""
    faulthandler.dump_traceback_later(LONGEST * max(1, COUNT // 10), exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def small(**extra):
    """A model of two layers, quick to convert."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        f"{FC1}.weight": torch.randn(256, 128, generator=g),
        "blocks.1.mlp.fc1.weight": torch.randn(256, 128, generator=g).bfloat16(),
        "blocks.0.norm.weight": torch.randn(128, generator=g),
        "blocks.0.mlp.fc1.bias": torch.randn(256, generator=g),
    }
    return tensors | extra


def end(capsys, argv, where):
    """Run a command; return its exit code, having seen that it ended as a program should."""
    code = main([str(a) for a in argv])
    out, errors = capsys.readouterr()
    lines = [x for x in errors.splitlines() if not x.startswith(("note: ", "warning: ", "still wrong: "))]
    assert code in (0, 1), where
    assert "Traceback" not in errors + out, where
    assert "unexpected" not in errors, f"{where}: {errors}"
    assert "\x1b" not in errors + out, where
    if code == 1 and argv[0] not in ("verify", "inspect"):
        assert len(lines) == 1, f"{where}: {errors}"
        assert lines[0].startswith("error: "), where
    return code


def sound(path, where):
    """See that the safetensors library reads a file and that its scales are numbers."""
    with safe_open(str(path), "pt") as f:
        assert all(isinstance(v, str) for v in (f.metadata() or {}).values()), where
    for name, tensor in load_file(str(path)).items():
        if name.endswith("weight_scale") and tensor.is_floating_point():
            assert bool(torch.isfinite(tensor.float()).all()), where


def test_damaged_models(tmp_path, capsys):
    plain = save(tmp_path / "plain.safetensors", small(), {"format": "pt", "a": "b"}).read_bytes()
    convert_to_int8(tmp_path / "plain.safetensors", tmp_path / "int8.safetensors")
    int8 = (tmp_path / "int8.safetensors").read_bytes()
    source, output = tmp_path / "m.safetensors", tmp_path / "q.safetensors"
    ends = set()
    for i in range(COUNT):
        where = f"seed {SEED}, file {i}"
        chance = random.Random(f"{SEED} {i}")
        source.write_bytes(damaged(chance.choice([plain, plain, int8]), chance))
        end(capsys, ["inspect", source], where)
        planned = end(capsys, ["-i", source, "--dry-run"], where)
        ends.add(planned)
        if planned == 0 and end(capsys, ["-i", source, "-o", output, "--overwrite"], where) == 0:
            sound(output, where)
            end(capsys, ["verify", source, output], where)
        if end(capsys, ["edit", source, "-o", output, "--overwrite"], where) == 0:
            sound(output, where)
    assert ends == {0, 1}, "some damage is to be found, and some to leave a model"


def test_damaged_companions(tmp_path, capsys):
    """LoRAs, maps of LoRAs and indices."""
    model = save(tmp_path / "m.safetensors", small())
    lora = save_lora(tmp_path / "l0.safetensors", low_rank(FC1, 256, 128)[0]).read_bytes()
    index = save_sharded(tmp_path / "shards", block_weights(blocks=1))
    mapped = {"m.safetensors": {"loras": ["l.safetensors"], "scale": 0.5, "dampen": False}}
    shards = f"shards/{index.name}"
    texts = {"map.json": mapped, shards: json.loads(index.read_text())}
    commands = {
        "map.json": ["-i", model, "--lora-map", tmp_path / "map.json"],
        shards: ["-i", index],
        "l.safetensors": ["-i", model, "--merge-lora", tmp_path / "l.safetensors"],
    }
    (tmp_path / "l.safetensors").write_bytes(lora)
    ends = set()
    for i in range(COUNT):
        where, chance = f"seed {SEED}, companion {i}", random.Random(f"{SEED} companion {i}")
        name = chance.choice(list(commands))
        if name == "l.safetensors":
            data = damaged(lora, chance)
        else:
            data = json.dumps(changed(texts[name], chance)).encode("utf-8", "surrogatepass")
            data = bytes_changed(data, chance, len(data)) if chance.random() < 0.3 else data
        (tmp_path / name).write_bytes(data)
        ends.add((name, end(capsys, [*commands[name], "--dry-run"], f"{where} ({name})")))
        (tmp_path / "l.safetensors").write_bytes(lora)
    assert ends >= {(name, 1) for name in commands}
    assert {code for _, code in ends} == {0, 1}
