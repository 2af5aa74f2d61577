"""Loading and saving checkpoints: what comes in, what goes out, what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.runtime import (
    CheckpointError,
    Int8Linear,
    empty_weights,
    load_quantized,
    quantize_model,
    save_quantized,
)


class Net(nn.Module):
    """Two linears with a norm between, an embedding and a table that no checkpoint holds."""

    def __init__(self, k: int = 256, n: int = 128, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.table = nn.Embedding(50, k, dtype=dtype)
        self.fc1 = nn.Linear(k, n, dtype=dtype)
        self.norm = nn.LayerNorm(n, dtype=dtype)
        self.fc2 = nn.Linear(n, k, bias=False, dtype=dtype)
        self.register_buffer("freqs", torch.arange(4.0), persistent=False)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(self.fc1(self.table(index))))


def config(**fields) -> torch.Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def index() -> torch.Tensor:
    return torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layout", ["int8_tensorwise", "int8_blockwise"])
@pytest.mark.parametrize("build", ["meta", "real"])
def test_saved_model_loads_with_the_same_bits_and_outputs(net, index, tmp_path, layout, build):
    """What is written is what comes back, on the meta device or not."""
    quantize_model(net, layout)
    path = save_quantized(net, tmp_path / "a.safetensors", metadata={"config": "{}"})
    if build == "meta":
        with empty_weights():
            other = Net()
    else:
        other = Net()
    report = load_quantized(other, path)
    assert sorted(report.quantized) == ["fc1", "fc2"]
    assert report.metadata == {"config": "{}"}
    assert type(other.fc1) is nn.Linear
    for name in ("fc1", "fc2"):
        a, b = getattr(net, name).weight, getattr(other, name).weight
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    with torch.no_grad():
        assert torch.equal(net(index), other(index))
    assert other.freqs.tolist() == [0, 1, 2, 3]


def test_the_file_holds_exactly_what_comfyui_would_save(net, tmp_path):
    """int8 weight, (N, 1) float32 scale, uint8 JSON with the three keys, plain tensors, metadata kept."""
    quantize_model(net, rotation=64)
    save_quantized(net, tmp_path / "a.safetensors", prefix="model.diffusion_model.")
    with safe_open(tmp_path / "a.safetensors", "pt") as f:
        names = set(f.keys())
        scale = f.get_tensor("model.diffusion_model.fc1.weight_scale")
        raw = bytes(f.get_tensor("model.diffusion_model.fc1.comfy_quant").tolist()).decode()
        assert f.get_tensor("model.diffusion_model.fc1.weight").dtype == torch.int8
        assert f.metadata() is None
    assert scale.shape == (128, 1)
    assert scale.dtype == torch.float32
    assert raw == '{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 64}'
    layer = {f"fc{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "weight_scale", "comfy_quant")}
    plain = {"fc1.bias", "norm.weight", "norm.bias", "table.weight"}
    assert names == {"model.diffusion_model." + n for n in layer | plain}


def test_per_tensor_scales_are_written_one_by_one(net, tmp_path):
    quantize_model(net, scaling="tensor")
    save_quantized(net, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as f:
        assert f.get_tensor("fc1.weight_scale").shape == (1, 1)
    load_quantized(net, tmp_path / "a.safetensors")


def stored(weight: torch.Tensor, scale: torch.Tensor, **fields) -> dict[str, torch.Tensor]:
    return {"weight": weight, "weight_scale": scale, "comfy_quant": config(**fields)}


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((64, 1), {"format": "int8_tensorwise"}),
        ((64,), {"format": "int8_tensorwise"}),
        ((), {"format": "int8_tensorwise"}),
        ((1,), {"format": "int8_tensorwise"}),
        ((1, 1), {"format": "int8_tensorwise", "full_precision_matrix_mult": True}),
        ((64, 1), {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}),
        ((64, 1), {"format": "int8_tensorwise", "params": {"convrot": True}}),
        ((1, 2), {"format": "int8_blockwise", "group_size": 128}),
        ((2, 8), {"format": "int8_blockwise", "params": {"group_size": 32}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_files_of_other_tools_load(tmp_path, shape, fields, prefix):
    """Every scale shape and place of the keys that is seen in the wild gives the float weight it means."""
    q = torch.randint(-127, 128, (64, 256), dtype=torch.int8)
    scale = torch.rand(shape) * 0.01 + 0.01
    tensors = {f"0.{k}": v for k, v in stored(q, scale, **fields).items()}
    tensors["0.bias"] = torch.randn(64).bfloat16()
    save_file({prefix + k: v for k, v in tensors.items()}, tmp_path / "a.safetensors")
    model = nn.Sequential(nn.Linear(256, 64))
    load_quantized(model, tmp_path / "a.safetensors")
    merged = {**fields.get("params", {}), **fields}
    if fields["format"] == "int8_blockwise":
        block = merged["group_size"]
        full = scale.repeat_interleave(block, 0)[:64].repeat_interleave(block, 1)[:, :256]
        want = q.float() * full
    else:
        want = q.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
        if merged.get("convrot"):
            from convert_to_quant.kernels import rotate

            want = rotate(want, merged.get("convrot_groupsize", 256))
    weight = model[0].weight
    assert weight.dtype == torch.bfloat16
    assert model[0].bias.dtype == torch.bfloat16
    torch.testing.assert_close(weight.dequantize().float(), want, rtol=2**-8, atol=1e-6)


def test_all_in_one_checkpoints_leave_other_components_alone(net, tmp_path):
    quantize_model(net)
    path = save_quantized(net, tmp_path / "a.safetensors", prefix="model.diffusion_model.")
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    tensors["first_stage_model.conv.weight"] = torch.zeros(3)
    save_file(tensors, path)
    report = load_quantized(Net(), path)
    assert report.prefix == "model.diffusion_model."
    assert report.other_components == 1


def test_header_metadata_stands_in_for_and_overrides_the_layers_own(net, tmp_path, caplog):
    """As in ComfyUI: enough on its own, and the winner where the two disagree (with a warning here)."""
    quantize_model(net, rotation=64)
    path = save_quantized(net, tmp_path / "a.safetensors", quant_metadata=True)
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        metadata = f.metadata()
    assert json.loads(metadata["_quantization_metadata"])["format_version"] == "1.0"
    bare = {k: v for k, v in tensors.items() if not k.endswith("comfy_quant")}
    save_file(bare, tmp_path / "b.safetensors", metadata)
    other = Net()
    load_quantized(other, tmp_path / "b.safetensors")
    assert torch.equal(other.fc1.weight, net.fc1.weight)
    tensors["fc1.comfy_quant"] = config(format="int8_tensorwise")
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    load_quantized(other, tmp_path / "c.safetensors")
    assert other.fc1.weight._layout_params["rotation"] == 64
    assert "disagree" in caplog.text


def test_float8_layers_of_others_stay_float8(tmp_path):
    w = torch.randn(64, 64)
    scale = w.abs().max() / 448
    tensors = stored((w / scale).to(torch.float8_e4m3fn), scale, format="float8_e4m3fn")
    save_file({f"0.{k}": v for k, v in tensors.items()}, tmp_path / "a.safetensors")
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    report = load_quantized(model, tmp_path / "a.safetensors", dtype=torch.float32)
    assert report.quantized == {"0": "float8_e4m3fn"}
    assert model[0].weight._qdata.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(model[0].weight.dequantize(), w, rtol=0.07, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc1.comfy_quant"), "layer fc1 is stored as torch.int8 but"),
        (lambda t: t.pop("fc1.weight_scale"), "layer fc1 .* has no weight_scale"),
        (lambda t: t.pop("fc1.bias"), "missing from the file: fc1.bias"),
        (
            lambda t: t.update({"fc1.bais": t.pop("fc1.bias")}),
            r"unknown to the model: fc1.bais \(nearest: fc1.bias",
        ),
        (lambda t: t.update({"fc1.weight_scale": torch.ones(7, 1)}), r"layer fc1: weight_scale is \[7, 1\]"),
        (
            lambda t: t.update({"fc1.weight": t["fc1.weight"][:, :64].clone()}),
            "layer fc1: convrot_groupsize 256 does not divide its 64 columns",
        ),
        (lambda t: t.update({"fc1.comfy_quant": config(format="int3")}), "layer fc1 has format 'int3'"),
        (lambda t: t.update({"fc1.comfy_quant": config(x=1)}), "names no format"),
        (
            lambda t: t.update({"fc2.comfy_quant": config(format="int8_tensorwise", convrot=True)}),
            "layer fc2: convrot_groupsize 256 does not divide its 128 columns",
        ),
    ],
    ids=[
        "no config",
        "no scale",
        "missing",
        "misspelt",
        "scale shape",
        "weight shape",
        "other format",
        "no format",
        "rotation",
    ],
)
def test_what_would_give_noise_is_refused_by_name(net, tmp_path, change, message):
    quantize_model(net)
    path = save_quantized(net, tmp_path / "a.safetensors")
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        load_quantized(Net(), path)


def test_a_refused_file_leaves_the_model_as_it_was(net, index, tmp_path):
    """Names and shapes are compared before the first tensor is read."""
    save_file({"fc1.weight": torch.zeros(128, 256)}, tmp_path / "a.safetensors")
    before = net(index)
    with pytest.raises(CheckpointError, match="missing from the file"):
        load_quantized(net, tmp_path / "a.safetensors")
    assert torch.equal(net(index), before)
    report = load_quantized(net, tmp_path / "a.safetensors", strict=False)
    assert "norm.weight" in report.missing


def test_a_dtype_that_torch_cannot_compute_with_is_refused_before_anything_is_read(net, index, tmp_path):
    """In a tensor the model needs; in another part of the file it does not matter."""
    path, before = save_quantized(net, tmp_path / "a.safetensors"), net(index)
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    strange = torch.zeros(tensors["norm.bias"].shape, dtype=torch.uint16)
    save_file({**{f"model.{k}": v for k, v in tensors.items()}, "vae.x": strange}, path)
    assert load_quantized(net, path).other_components == 1
    save_file({**tensors, "norm.bias": strange}, path)
    with pytest.raises(CheckpointError, match=r"'norm\.bias' has dtype U16"):
        load_quantized(net, path)
    assert torch.equal(net(index), before)


@pytest.mark.parametrize("kind", ["absent", "cut", "garbage"])
def test_broken_files_are_refused(net, tmp_path, kind):
    path = tmp_path / "a.safetensors"
    if kind == "cut":
        save_quantized(net, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "garbage":
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"no such file|truncated"):
        load_quantized(Net(), path)


def test_meta_buffers_that_nothing_fills_are_named(net, tmp_path):
    path = save_quantized(net, tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = Net()
    with pytest.raises(CheckpointError, match=r"'freqs'.*empty_weights"):
        load_quantized(model, path)


def test_tied_weights_are_written_once_and_loaded_under_both_names(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Embedding(40, 64)
            self.b = nn.Linear(64, 40, bias=False)
            self.b.weight = self.a.weight

    path = save_quantized(Tied(), tmp_path / "a.safetensors")
    with safe_open(path, "pt") as f:
        assert list(f.keys()) == ["a.weight"]
    with empty_weights():
        model = Tied()
    model.b.weight = model.a.weight
    load_quantized(model, path)
    assert model.b.weight is model.a.weight
    assert not model.b.weight.is_meta


def test_a_model_that_is_one_layer(tmp_path):
    """Its tensors have no layer before their names."""
    model = nn.Linear(64, 48)
    quantize_model(model)
    path = save_quantized(model, tmp_path / "a.safetensors")
    other = nn.Linear(64, 48)
    load_quantized(other, path)
    assert torch.equal(other.weight, model.weight)


def test_shards_and_index_load(net, tmp_path):
    quantize_model(net)
    path = save_quantized(net, tmp_path / "whole.safetensors")
    with safe_open(path, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    folder = tmp_path / "shards"
    folder.mkdir()
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for name, keys in halves.items():
        save_file({k: tensors[k] for k in keys}, folder / name)
    weight_map = {k: name for name, keys in halves.items() for k in keys}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for source in (folder, folder / "m.safetensors.index.json"):
        other = Net()
        load_quantized(other, source)
        assert torch.equal(other.fc1.weight, net.fc1.weight)


def test_a_failed_save_leaves_the_old_file(net, tmp_path):
    path = save_quantized(net, tmp_path / "a.safetensors")
    before = path.read_bytes()
    net.odd = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(CheckpointError, match="no safetensors type"):
        save_quantized(net, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_survives_a_round_trip(net, tmp_path):
    """LTX keeps its configuration there: dropping it breaks the model."""
    quantize_model(net)
    first = save_quantized(net, tmp_path / "a.safetensors", metadata={"config": "x"}, quant_metadata=True)
    other = Net()
    load_quantized(other, first)
    second = save_quantized(other, tmp_path / "b.safetensors")
    with safe_open(first, "pt") as a, safe_open(second, "pt") as b:
        assert a.metadata() == b.metadata()
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in a.keys())  # noqa: SIM118


@pytest.mark.parametrize("layout", ["TensorWiseINT8Layout", "BlockWiseINT8Layout"])
def test_int8_linear_takes_a_checkpoint_layer(layout):
    """The explicit module computes what nn.Linear with a QuantizedTensor does, and keeps its state dict."""
    torch.manual_seed(0)
    linear = nn.Linear(256, 128)
    layer = Int8Linear.from_linear(linear, layout, **({"rotation": 64} if "Tensor" in layout else {}))
    x = torch.randn(3, 5, 256)
    empty = Int8Linear(256, 128)
    assert empty.load_state_dict(layer.state_dict()).missing_keys == []
    with torch.no_grad():
        want = torch.nn.functional.linear(x, layer.quantized_weight(), linear.bias)
        assert torch.equal(layer(x), want)
        assert torch.equal(empty(x), want)
    cast = layer.to(torch.bfloat16)
    assert cast.weight_scale.dtype == torch.float32
    assert cast(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="Missing key"):
        Int8Linear(256, 128).load_state_dict({"bias": linear.bias.detach()})


MEMORY = """
import os, sys, torch
from torch import nn
from convert_to_quant.runtime import empty_weights, load_quantized
def memory(kind):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(kind)) * 1024
with empty_weights():
    layers = (nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(48))
    model = nn.Sequential(*layers)
before = memory("VmRSS")
load_quantized(model, sys.argv[1])
print((memory("VmHWM") - before) / os.path.getsize(sys.argv[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_a_big_file_stays_within_its_size(tmp_path):
    """200 MB on the meta device: memory grows by at most 1.05 of the file. bench/runtime.py has the speed."""
    with empty_weights():
        model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(48)))
    integers = torch.randint(-127, 128, (2048, 2048), dtype=torch.int8)
    params = {"scale": torch.full((2048, 1), 0.01), "rotation": 256, "orig_dtype": torch.bfloat16}
    for layer in model:
        q = QuantizedTensor(integers.clone(), "TensorWiseINT8Layout", params)
        layer.weight = nn.Parameter(q, requires_grad=False)
    path = save_quantized(model, tmp_path / "big.safetensors")
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) <= 1.05


def test_storage_types_are_those_of_the_file(net, tmp_path):
    """None keeps the file's own dtypes; a dtype casts floats and the logical dtype, never the scales."""
    quantize_model(net)
    path = save_quantized(net, tmp_path / "a.safetensors")
    other = Net()
    load_quantized(other, path, dtype=torch.float16)
    assert other.norm.weight.dtype == torch.float16
    assert other.fc1.weight.dtype == torch.float16
    assert isinstance(other.fc1.weight, QuantizedTensor)
    assert other.fc1.weight._layout_params["scale"].dtype == torch.float32
    assert not any(p.requires_grad for p in other.parameters())
