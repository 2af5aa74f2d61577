"""Files of torch.save: read where they stand, without running what is in them."""

import argparse
import collections
import json
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch
from models import block_weights, layers
from safetensors.torch import load_file, save_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats.errors import CheckpointError

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


def read_all(path):
    with open_checkpoint(path) as f:
        return {name: f.read(name) for name in f.tensors}


def same(a, b):
    a, b = a.contiguous().flatten(), b.contiguous().flatten()
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def plain():
    tensors = {str(d): (torch.randn(5, 3) * 3).to(d) for d in DTYPES}
    return {**tensors, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}


def test_every_dtype_is_read_as_it_was_saved(tmp_path):
    saved = plain()
    torch.save(saved, tmp_path / "m.pth")
    found = read_all(tmp_path / "m.pth")
    assert set(found) == set(saved)
    for name, tensor in saved.items():
        assert found[name].shape == tensor.shape
        assert found[name].is_contiguous()
        assert same(found[name], tensor), name


def test_views_are_read_as_what_they_show(tmp_path):
    whole = torch.randn(64, 32)
    saved = {
        "transposed": whole.t(),
        "column": whole[:, 3],
        "rows": whole[8:16],
        "tied": whole,
        "again": whole,
        "repeated": torch.randn(1, 4).expand(3, 4),
        "channels last": torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
    }
    torch.save(saved, tmp_path / "m.pt")
    found = read_all(tmp_path / "m.pt")
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor.detach()), name
    with open_checkpoint(tmp_path / "m.pt") as f:
        part = bytearray(12)
        f.read_into(f.tensors["transposed"], memoryview(part), 8)
        assert bytes(part) == whole.t().contiguous().numpy().tobytes()[8:20]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3, "step": torch.tensor(4), "optimizer": {"m": torch.ones(3)}},
        lambda w: {"model": {"state_dict": collections.OrderedDict(w)}, "args": {"lr": 1.0}},
        lambda w: {"params_ema": w},
        lambda w: {name.partition(".")[0]: {name.partition(".")[2]: t} for name, t in w.items()},
    ],
)
def test_weights_are_found_where_trainers_put_them(tmp_path, wrap):
    weights = {"a.weight": torch.randn(4, 4), "b.bias": torch.randn(4)}
    torch.save(wrap(weights), tmp_path / "m.ckpt")
    found = read_all(tmp_path / "m.ckpt")
    assert set(found) == set(weights)
    assert all(torch.equal(found[n], t) for n, t in weights.items())


def test_a_conversion_of_a_pth_is_that_of_its_safetensors(tmp_path):
    weights = block_weights()
    weights["x_embedder.weight"] = weights["x_embedder.weight"].t().contiguous().t()
    weights["blocks.0.mlp.fc1.weight"] = weights["blocks.0.mlp.fc1.weight"].t().contiguous().t()
    torch.save({"state_dict": weights}, tmp_path / "m.pth")
    save_file({n: t.contiguous() for n, t in weights.items()}, str(tmp_path / "m.safetensors"))
    for kind in ("pth", "safetensors"):
        assert main(["-i", str(tmp_path / f"m.{kind}"), "-o", str(tmp_path / f"{kind}.safetensors")]) == 0
    a, b = (load_file(str(tmp_path / f"{kind}.safetensors")) for kind in ("pth", "safetensors"))
    assert a.keys() == b.keys()
    assert all(same(a[n], b[n]) for n in a)
    assert main(["-i", str(tmp_path / "m.pth")]) == 0
    assert (tmp_path / "m-int8_row_convrot.safetensors").exists()
    assert main(["verify", str(tmp_path / "m.pth"), str(tmp_path / "pth.safetensors")]) == 0
    assert sum(n.endswith(".comfy_quant") for n in a) == len(layers())


def test_shards_of_bin_files_are_one_model(tmp_path):
    weights = block_weights()
    names = list(weights)
    for i in range(2):
        torch.save({n: weights[n] for n in names[i::2]}, tmp_path / f"pytorch_model-{i}.bin")
    index = {n: f"pytorch_model-{i}.bin" for i in range(2) for n in names[i::2]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for path in (tmp_path, tmp_path / "pytorch_model.bin.index.json"):
        assert read_all(path).keys() == weights.keys()


class Evil:
    def __reduce__(self):
        return (open, ("evil", "w"))


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


REFUSED = {
    "code": (lambda p: torch.save({"a": torch.ones(2), "x": Evil()}, p), "holds more than weights"),
    "other classes": (
        lambda p: torch.save({"state_dict": {"a": torch.ones(2)}, "args": argparse.Namespace()}, p),
        r"holds more than weights \(argparse.Namespace\), which is not loaded",
    ),
    "no tensors": (lambda p: torch.save({"lr": 1}, p), "holds no tensors, neither at its top nor under"),
    "a tensor alone": (lambda p: torch.save(torch.ones(2), p), "holds no tensors"),
    "sparse": (lambda p: torch.save({"a": torch.ones(2, 2).to_sparse()}, p), "tensor 'a' is sparse"),
    "complex": (lambda p: torch.save({"a": torch.ones(2, dtype=torch.complex64)}, p), "no safetensors type"),
    "numbers as names": (lambda p: torch.save({3: torch.ones(2)}, p), "'3' cannot be a tensor's name"),
    "old file": (
        lambda p: torch.save({"a": torch.ones(2)}, p, _use_new_zipfile_serialization=False),
        "written before torch 1.6",
    ),
    "bare pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a PyTorch pickle of the kind"),
    "zip": (
        lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x"),
        "not one that torch.save wrote|damaged",
    ),
    "half": (
        lambda p: (torch.save({"a": torch.ones(999)}, p), p.write_bytes(p.read_bytes()[:2000])),
        "damaged or cut off",
    ),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_plain_weights_is_refused(tmp_path, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message) as e:
        read_all(tmp_path / "m.pth")
    assert str(tmp_path / "m.pth") in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"], "nothing in a file may run"


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"a": torch.ones(99)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as old, zipfile.ZipFile(tmp_path / "n.pth", "w", 8) as new:
        for m in old.infolist():
            new.writestr(m.filename, old.read(m))
    with pytest.raises(CheckpointError, match="its weights are compressed"):
        read_all(tmp_path / "n.pth")


def test_damage_is_refused_or_read(tmp_path):
    path, ends = tmp_path / "m.pth", set()
    torch.save({"state_dict": {"a.weight": torch.randn(20, 30), "b": torch.ones(7)}}, path)
    whole = path.read_bytes()
    for seed in range(60):
        rng, raw = random.Random(seed), bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        if rng.random() < 0.2:
            del raw[rng.randrange(len(raw)) :]
        path.write_bytes(bytes(raw))
        try:
            read_all(path)
            ends.add("read")
        except CheckpointError as e:
            ends.add("refused" if str(path) in str(e) else f"seed {seed}: {e}")
    assert ends == {"read", "refused"}


def test_a_plan_of_safetensors_loads_no_torch(tmp_path):
    save_file(block_weights(), str(tmp_path / "m.safetensors"))
    code = (
        "import sys; from convert_to_quant.quantization import plan_int8; "
        f"plan_int8({str(tmp_path / 'm.safetensors')!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
