"""The ComfyUI node pack, beside a stand-in for ComfyUI and the real comfy-kitchen."""

import importlib.util
import inspect
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peers import peer
from safetensors.torch import load_file
from torch import nn

from convert_to_quant import kernels
from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.converter.cli import install_nodes
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.runtime import load_quantized, quantize_model, save_quantized

kitchen = peer("comfy_kitchen.tensor")
backends = peer("comfy_kitchen.registry").registry
ROUTED = "custom_nodes_convert_to_quant"
STANDIN = Path(__file__).parents[1] / "support" / "standin"


class Transformer(nn.Module):
    """As ComfyUI's models are written: layers from `operations`."""

    def __init__(self, operations):
        super().__init__()
        self.up = operations.Linear(128, 256)
        self.down = operations.Linear(256, 128, bias=False)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x)))


@pytest.fixture
def comfy(monkeypatch):
    """The stand-in importable as ComfyUI is, fresh for each test."""
    monkeypatch.syspath_prepend(str(STANDIN))
    for name in [n for n in sys.modules if n.partition(".")[0] == "comfy"]:
        monkeypatch.delitem(sys.modules, name)
    import comfy.model_management
    import comfy.model_patcher
    import comfy.ops
    import comfy.quant_ops

    yield comfy
    for name in [n for n in sys.modules if n.partition(".")[0] == "comfy"]:
        del sys.modules[name]


@pytest.fixture
def pack(comfy, monkeypatch):
    """The folder loaded as ComfyUI loads a custom node: by its path, under a name of its own."""
    name = ROUTED
    folder = install_nodes.source_folder()
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    yield module
    sys.modules[f"{name}.routing"].ROUTER.set("off")
    sys.modules[f"{name}.hooks"].uninstall()
    sys.modules[f"{name}.nodes"]._RECORDERS.clear()
    for sub in [n for n in sys.modules if n.startswith(name + ".")]:
        del sys.modules[sub]


def float_model() -> nn.Module:
    torch.manual_seed(0)
    return Transformer(nn).requires_grad_(False)


def smoothed(model: nn.Module, rotation: int = 64) -> None:
    smooth = torch.rand(128, generator=torch.Generator().manual_seed(4)) + 0.5
    options = {"pre_quant_scale": smooth, "rotation": rotation, "input_scale": torch.tensor(0.06)}
    q = QuantizedTensor.from_float(model.up.weight, "TensorWiseINT8Layout", **options)
    model.up.weight = nn.Parameter(q, requires_grad=False)


def smoothed_blocks(model: nn.Module) -> None:
    smooth = torch.rand(128, generator=torch.Generator().manual_seed(4)) + 0.5
    q = QuantizedTensor.from_float(
        model.up.weight, "BlockWiseINT8Layout", block_size=64, pre_quant_scale=smooth
    )
    model.up.weight = nn.Parameter(q, requires_grad=False)


KINDS = {
    "block 128": lambda m: quantize_model(m, "int8_blockwise"),
    "block 32": lambda m: quantize_model(m, "int8_blockwise", block_size=32),
    "smooth": smoothed,
    "smooth, not rotated": lambda m: smoothed(m, 0),
    "smooth blocks": smoothed_blocks,
    "stock": lambda m: quantize_model(m, rotation=64),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request) -> str:
    return request.param


@pytest.fixture
def checkpoint(kind, tmp_path) -> tuple[nn.Module, Path]:
    """(our own model with these weights, its file)."""
    model = float_model()
    KINDS[kind](model)
    return model, save_quantized(model, tmp_path / "a.safetensors")


def hosted(comfy, path, dtype=torch.float32) -> nn.Module:
    """The model as ComfyUI builds it."""
    model = Transformer(comfy.ops.pick_operations({"mixed_ops": True}, dtype))
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False)


def test_stock_refuses_block_wise_files(comfy, tmp_path):
    """What the node pack is for: without it, KeyError."""
    model = float_model()
    quantize_model(model, "int8_blockwise")
    path = save_quantized(model, tmp_path / "a.safetensors")
    with pytest.raises(KeyError, match="int8_blockwise"):
        hosted(comfy, path)


def test_files_load_and_compute_what_our_runtime_does(pack, comfy, kind, checkpoint):
    """Block-wise and smoothed weights run in ComfyUI's own Linear; stock layers stay comfy-kitchen's."""
    ours, path = checkpoint
    model = hosted(comfy, path)
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = ours(x)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            got = model(x)
        # Rare ties of the activations fall to the other side; a wrong scale or rotation is far off.
        assert (got - want).norm() / want.norm() < 5e-3
    expected = {"block": "BlockWiseINT8Layout", "stock": "TensorWiseINT8Layout"}.get(kind.split()[0])
    if expected:
        assert model.up.weight._layout_cls == expected
    dense = ours.up.weight.dequantize()
    torch.testing.assert_close(model.up.weight.dequantize(), dense, rtol=1e-4, atol=1e-5)
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_saving_writes_the_same_file(pack, comfy, checkpoint):
    """ComfyUI's own save of such a model: same names, same bytes."""
    _, path = checkpoint
    state, written = load_file(path), hosted(comfy, path).state_dict()
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(written[name].reshape(tensor.shape), tensor), name


def test_loras_patch_and_come_off(pack, comfy, kind, checkpoint):
    """ComfyUI's patch path: the delta is added to the float weight, the layout stays, the bits come back."""
    _, path = checkpoint
    host = SimpleNamespace(diffusion_model=hosted(comfy, path))
    patcher = comfy.model_patcher.ModelPatcher(host)
    delta = torch.randn(256, 128, generator=torch.Generator().manual_seed(2)) * 0.02
    patcher.patches = {"up": delta}
    layer = host.diffusion_model.up
    before, dense, layout = (
        layer.weight._qdata.clone(),
        layer.weight.dequantize(),
        getattr(layer.weight, "_layout_cls", None),
    )
    patcher.patch()
    assert layer.weight._layout_cls == layout
    want = dense + delta
    assert (layer.weight.dequantize() - want).norm() / want.norm() < 0.03
    assert not torch.equal(layer.weight._qdata, before)
    patcher.unpatch()
    assert torch.equal(layer.weight._qdata, before)
    assert torch.equal(layer.weight.dequantize(), dense)


def test_patches_applied_during_the_forward_see_the_float_weight(pack, comfy, checkpoint):
    """The low-memory way, where a function changes the dequantized weight on the fly."""
    ours, path = checkpoint
    model = hosted(comfy, path)
    x, delta = torch.randn(5, 128), torch.randn(256, 128) * 0.02
    model.up.weight_function.append(lambda w: w + delta)
    dense = ours.up.weight.dequantize() if isinstance(ours.up.weight, QuantizedTensor) else ours.up.weight
    with torch.no_grad():
        want = nn.functional.linear(x, dense + delta, ours.up.bias)
        torch.testing.assert_close(model.up(x), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("broken", ["no table", "no int8", "no factory", "no comfy"])
def test_a_comfyui_without_the_hooks_gets_a_message(comfy, monkeypatch, caplog, broken, request):
    """One line that says what is missing; the nodes are there all the same; nothing is changed."""
    if broken == "no table":
        del comfy.quant_ops.QUANT_ALGOS
    elif broken == "no int8":
        comfy.quant_ops.QUANT_ALGOS.clear()
    elif broken == "no factory":
        del comfy.ops.mixed_precision_ops
    else:
        monkeypatch.setitem(sys.modules, "comfy.ops", None)
    with caplog.at_level(logging.WARNING):
        pack = request.getfixturevalue("pack")
    assert "is not available" in caplog.text
    assert {"no comfy": "not running inside ComfyUI"}.get(broken, "update ComfyUI") in caplog.text
    assert len(pack.NODE_CLASS_MAPPINGS) == len(pack.NODE_DISPLAY_NAME_MAPPINGS) == 4
    assert getattr(comfy.quant_ops, "QUANT_ALGOS", {}).keys() <= {"int8_tensorwise"}


def test_everything_can_be_taken_back(pack, comfy):
    hooks = sys.modules[f"{pack.__name__}.hooks"]
    assert comfy.quant_ops.QUANT_ALGOS.keys() == {"int8_tensorwise", "int8_blockwise"}
    assert "pre_quant_scale" in comfy.quant_ops.QUANT_ALGOS["int8_tensorwise"]["parameters"]
    patched = comfy.ops.mixed_precision_ops
    hooks.install()
    assert comfy.ops.mixed_precision_ops is patched
    hooks.uninstall()
    assert comfy.quant_ops.QUANT_ALGOS.keys() == {"int8_tensorwise"}
    assert comfy.quant_ops.QUANT_ALGOS["int8_tensorwise"]["parameters"] == {"weight_scale"}
    assert comfy.ops.mixed_precision_ops is patched.__wrapped__


def test_outside_comfyui_importing_changes_nothing():
    """No comfy, no hooks, no error."""
    assert "comfy" not in sys.modules
    import convert_to_quant.comfyui_nodes as nodes

    assert len(nodes.NODE_CLASS_MAPPINGS) == 4


@pytest.fixture
def router(pack):
    """The router, off and without choices."""
    found = sys.modules[f"{pack.__name__}.routing"].ROUTER
    found.choices.clear()
    return found


def test_routing_of_stock_layers(pack, comfy, router, tmp_path):
    """on: the fused kernel; auto: measured once a shape; off: as it was."""
    model = float_model()
    quantize_model(model, rotation=64)
    host = hosted(comfy, save_quantized(model, tmp_path / "a.safetensors"))
    node = pack.NODE_CLASS_MAPPINGS["CTQInt8Kernel"]()
    order = list(backends._priority)
    x = torch.randn(40, 128)
    with torch.inference_mode():
        stock = host(x)
        node.choose(None, "on")
        assert backends._priority == ["convert_to_quant", *order]
        assert backends.list_backends()["convert_to_quant"]["capabilities"] == ["int8_linear"]
        assert torch.equal(host(x), model(x))
        node.choose(None, "auto")
        auto = host(x)
        assert len(router.choices) == 2
        host(torch.randn(50, 128))
        assert len(router.choices) == 2, "40 and 50 rows are one bucket"
        assert (auto - stock).norm() / stock.norm() < 0.02
        node.choose(None, "off")
        assert torch.equal(host(x), stock)
    assert backends._priority == order
    with pytest.raises(ValueError, match="mode must be one of"):
        router.set("maybe")


@pytest.mark.parametrize("act", [None, "gelu_tanh", "swiglu", "rms_norm"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("mode", ["on", "auto"])
def test_routing_of_the_calls_that_models_make(router, act, residual, mode):
    """ComfyUI's models hand comfy-kitchen an input activation and a residual; both are served."""
    import comfy_kitchen

    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, 256 if act == "swiglu" else 128, generator=g)
    q, scale = kernels.quantize_rowwise(torch.randn(96, 128, generator=g), 64)
    bias = torch.randn(96, generator=g)
    more = {"convrot": True, "convrot_groupsize": 64} | ({"input_act": act} if act else {})
    if act == "rms_norm":
        more |= {"input_act_weight": torch.rand(128, generator=g) + 0.5, "input_act_eps": 1e-6}
    if residual:
        more |= {
            "residual": torch.randn(3, 20, 96, generator=g),
            "residual_scale": torch.rand(96, generator=g),
        }
    if more.keys() - inspect.signature(comfy_kitchen.int8_linear).parameters.keys():
        pytest.skip("this comfy-kitchen has no such call")
    call = lambda: comfy_kitchen.int8_linear(x, q, scale, bias, torch.float32, **more)
    stock = call()
    router.set(mode)
    served = []
    fused = sys.modules[f"{ROUTED}.routing"].fused
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{ROUTED}.routing.fused", lambda c: served.append(c) or fused(c))
        got = call()
    assert served
    assert got.shape == stock.shape
    assert (got - stock).norm() / stock.norm() < 0.01


def test_a_call_that_the_kernel_does_not_know_stays_with_comfy_kitchen(router):
    import comfy_kitchen

    x, q = torch.randn(20, 256), torch.ones(96, 128, dtype=torch.int8)
    flat = torch.rand(96)
    stock = comfy_kitchen.int8_linear(x[:, :128], q, flat, None, torch.float32)
    router.set("on")
    assert torch.equal(comfy_kitchen.int8_linear(x[:, :128], q, flat, None, torch.float32), stock)
    with pytest.raises(Exception, match=r"dimension|features|size"):
        comfy_kitchen.int8_linear(x, q, flat, None, torch.float32)


def test_an_explicit_back_end_is_respected(router):
    import comfy_kitchen

    router.set("on")
    x, q, scale = torch.randn(20, 128), torch.ones(96, 128, dtype=torch.int8), torch.rand(96, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{ROUTED}.routing.fused", lambda c: pytest.fail("not asked for"))
        with comfy_kitchen.use_backend("eager"):
            comfy_kitchen.int8_linear(x, q, scale, None, torch.float32)


def test_routing_without_the_hook_says_so(pack, monkeypatch):
    monkeypatch.delattr(type(backends), "register")
    with pytest.raises(RuntimeError, match="fused kernel cannot be used here"):
        pack.NODE_CLASS_MAPPINGS["CTQInt8Kernel"]().choose(None, "on")


def test_recording_while_generating(pack, comfy, tmp_path, monkeypatch):
    """Record, run, save: the file is what ``--calibration-data`` reads; more runs add to it."""
    from convert_to_quant.quant.calibration import CalibrationData

    folder = SimpleNamespace(get_output_directory=lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "folder_paths", folder)
    host = SimpleNamespace(model=SimpleNamespace(diffusion_model=float_model()))
    start = pack.NODE_CLASS_MAPPINGS["CTQCalibrationRecorder"]()
    finish = pack.NODE_CLASS_MAPPINGS["CTQSaveCalibration"]()
    with pytest.raises(ValueError, match="has run"):
        finish.save({}, "mine")
    for _ in range(2):
        assert start.start(host, "mine", 64, 1.0) == (host,)
        host.model.diffusion_model(torch.randn(1, 30, 128))
    latent, path = finish.save({"samples": 1}, "mine", keep_recording=False)
    assert latent == {"samples": 1}
    assert path == str(tmp_path / "mine.safetensors")
    stats = CalibrationData.load(path).stats("up")
    assert stats.samples.shape == (60, 128)
    assert not host.model.diffusion_model.up._forward_pre_hooks
    with pytest.raises(RuntimeError, match=r"no model\.diffusion_model"):
        start.start(object(), "mine", 64, 1.0)


@pytest.mark.parametrize("format", ["int8_tensorwise", "int8_blockwise"])
def test_saving_a_float_model_as_int8(pack, comfy, tmp_path, format):
    """LoRA included; the file loads in our runtime and no float copy stays behind."""
    model = float_model()
    host = SimpleNamespace(diffusion_model=Transformer(comfy.ops.pick_operations(None, torch.float32)))
    host.diffusion_model.load_state_dict(model.state_dict())
    patcher = comfy.model_patcher.ModelPatcher(host)
    patcher.patches = {"up": torch.full((256, 128), 0.05)}
    node = pack.NODE_CLASS_MAPPINGS["CTQSaveInt8Checkpoint"]()
    (path,) = node.save(patcher, str(tmp_path / "out"), format)
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]
    loaded = Transformer(nn)
    report = load_quantized(loaded, path)
    assert set(report.quantized.values()) == {format}
    want = model.up.weight + 0.05
    assert (loaded.up.weight.dequantize() - want).norm() / want.norm() < 0.02
    # And a model that is INT8 already is written as it is.
    quantized = SimpleNamespace(diffusion_model=hosted(comfy, path))
    (again,) = node.save(comfy.model_patcher.ModelPatcher(quantized), str(tmp_path / "again"), format)
    first, second = load_file(path), load_file(again)
    assert first.keys() == second.keys()
    assert torch.equal(first["up.weight"], second["up.weight"])


def test_installing_into_a_comfyui(tmp_path, capsys):
    """Link, copy, replace, remove; anything else of that name is left alone."""
    (tmp_path / "custom_nodes").mkdir()
    place = tmp_path / "custom_nodes" / "convert_to_quant_nodes"
    assert install_nodes.main([str(tmp_path)]) == 0
    assert place.is_symlink()
    assert (place / "hooks.py").is_file()
    assert install_nodes.main([str(tmp_path / "custom_nodes"), "--copy"]) == 0
    assert not place.is_symlink()
    assert (place / "hooks.py").is_file()
    assert install_nodes.main([str(tmp_path), "--remove"]) == 0
    assert not place.exists()
    assert "restart ComfyUI" in capsys.readouterr().out
    place.mkdir()
    with pytest.raises(ConversionError, match="is not this node pack"):
        install_nodes.install(tmp_path)
    with pytest.raises(ConversionError, match="not a ComfyUI folder"):
        install_nodes.install(place)
