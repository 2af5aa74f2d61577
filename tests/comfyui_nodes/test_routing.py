"""Sending INT8 linears to the fused kernel, beside a stand-in for ComfyUI and the real comfy-kitchen."""

import inspect
import logging
import sys

import pytest
import torch
from hosted_model import PACK, float_model, hosted
from peers import peer

from convert_to_quant import kernels
from convert_to_quant.runtime import quantize_model, save_quantized

backends = peer("comfy_kitchen.registry").registry


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
    assert node.INPUT_TYPES()["required"]["fused_kernel"][1]["default"] == "off" == router.mode
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
    fused = sys.modules[f"{PACK}.routing"].fused
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{PACK}.routing.fused", lambda c: served.append(c) or fused(c))
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
        patch.setattr(f"{PACK}.routing.fused", lambda c: pytest.fail("not asked for"))
        with comfy_kitchen.use_backend("eager"):
            comfy_kitchen.int8_linear(x, q, scale, None, torch.float32)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_fused_kernel_that_fails_gives_way(router, mode, caplog):
    import comfy_kitchen

    x, q, scale = torch.randn(20, 128), torch.ones(96, 128, dtype=torch.int8), torch.rand(96, 1)
    stock = comfy_kitchen.int8_linear(x, q, scale, None, torch.float32)
    router.set(mode)

    def fails(call):
        raise RuntimeError(f"no C compiler for {mode}\nmore")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(f"{PACK}.routing.fused", fails)
        for _ in range(3):
            assert torch.equal(comfy_kitchen.int8_linear(x, q, scale, None, torch.float32), stock)
    said = [r.getMessage() for r in caplog.records if "fused kernel failed" in r.getMessage()]
    assert said == [
        "an INT8 linear stays with comfy-kitchen: the fused kernel failed "
        f"(RuntimeError: no C compiler for {mode})"
    ]


def test_routing_without_the_hook_says_so(pack, monkeypatch):
    monkeypatch.delattr(type(backends), "register")
    with pytest.raises(RuntimeError, match="fused kernel cannot be used here"):
        pack.NODE_CLASS_MAPPINGS["CTQInt8Kernel"]().choose(None, "on")
