"""Merged weights against float64, for every kind of change and every source of alpha."""

import json

import pytest
import torch
from lora_files import STYLES, TINY_FLUX, flux_weights, low_rank, rand, save_lora
from models import save

from convert_to_quant.converter.lora.directions import lora_directions
from convert_to_quant.converter.lora.merge import lora_scales
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.converter.quantize.source import read_weight
from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats.errors import ConversionError

PROJ = "double_blocks.0.img_attn.proj"
QKV = "double_blocks.0.img_attn.qkv"
N, K = TINY_FLUX[PROJ]


@pytest.fixture
def flux(tmp_path):
    return save(tmp_path / "flux.safetensors", flux_weights())


@pytest.fixture
def lora(tmp_path):
    """Write LoRA tensors to a file; returns its path."""
    return lambda tensors, metadata=None, name="lora": save_lora(
        tmp_path / f"{name}.safetensors", tensors, metadata
    )


def merged(model, *loras, **options):
    """All tensors of a model as they reach the quantizer, by name."""
    settings = Settings(input_file=str(model), preset="none", merge_lora_paths=loras, **options)
    with open_checkpoint(model) as checkpoint:
        return {step.name: read_weight(checkpoint, step) for step in build_plan(checkpoint, settings)}


def expect(model, found, changes):
    """Every tensor is as in the model, plus the float64 change given for it, to float32 rounding."""
    with open_checkpoint(model) as checkpoint:
        for name, tensor in found.items():
            want = checkpoint.read(name).double() + changes.get(name, 0.0)
            assert tensor.shape == want.shape
            if name in changes:
                assert tensor.dtype == torch.float32
                torch.testing.assert_close(tensor.double(), want, rtol=3e-6, atol=3e-7)
            else:
                assert torch.equal(tensor.double(), want), name
    assert changes.keys() <= found.keys()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_key_style_gives_the_same_sum(flux, lora, style, dtype):
    tensors, change = low_rank(PROJ, N, K, style=style, dtype=dtype)
    expect(flux, merged(flux, lora(tensors)), {f"{PROJ}.weight": change})


@pytest.mark.parametrize(
    "module",
    [
        "lora_unet_double_blocks_0_img_attn_proj",
        "diffusion_model.double_blocks.0.img_attn.proj",
        "transformer.transformer_blocks.0.attn.to_out.0",
        "base_model.model.double_blocks.0.img_attn.proj",
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_prefix_leads_to_the_weight(tmp_path, lora, module, prefix):
    model = save(tmp_path / "flux.safetensors", flux_weights(prefix))
    tensors, change = low_rank(module, N, K, alpha=2)
    expect(model, merged(model, lora(tensors)), {f"{prefix}{PROJ}.weight": change})


def test_alpha_comes_from_its_tensor_then_metadata_then_the_rank(flux, lora):
    plain, change = low_rank(PROJ, N, K, rank=4)
    own, _ = low_rank(PROJ, N, K, rank=4, alpha=2)
    name = f"{PROJ}.weight"
    expect(flux, merged(flux, lora(own, {"ss_network_alpha": "16"})), {name: change * 2 / 4})
    expect(flux, merged(flux, lora(plain, {"ss_network_alpha": "16"})), {name: change * 16 / 4})
    expect(flux, merged(flux, lora(plain)), {name: change})


def test_alpha_comes_from_what_diffusers_and_peft_write(flux, lora, tmp_path):
    tensors, change = low_rank(f"transformer.{PROJ}", N, K, rank=4, style="peft")
    name = f"{PROJ}.weight"
    written = {"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.lora_alpha": 1}
    file = lora(tensors, {"lora_adapter_metadata": json.dumps(written)})
    expect(flux, merged(flux, file), {name: change * 8 / 4})
    written["transformer.alpha_pattern"] = {"img_attn.proj": 12}
    file = lora(tensors, {"lora_adapter_metadata": json.dumps(written)})
    expect(flux, merged(flux, file), {name: change * 12 / 4})
    (tmp_path / "peft").mkdir()
    folder = tmp_path / "peft"
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "use_rslora": True}))
    file = save_lora(folder / "adapter_model.safetensors", tensors)
    expect(flux, merged(flux, file), {name: change * 8 / 4**0.5})
    expect(flux, merged(flux, folder), {name: change * 8 / 4**0.5})


def test_damped_scales_are_powers_of_nine_tenths():
    assert lora_scales(3) == pytest.approx([1.0, 0.9, 0.81])
    assert lora_scales(3, 0.5) == pytest.approx([0.5, 0.45, 0.405])
    assert lora_scales(3, 0.5, dampen=False) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("dampen", "weights"), [(True, (1.0, 0.9, 0.81)), (False, (1.0, 1.0, 1.0))])
def test_several_loras_add_up_in_order(flux, lora, dampen, weights):
    files, total = [], 0.0
    for i, weight in enumerate(weights):
        tensors, change = low_rank(PROJ, N, K, rank=2 + i, alpha=3, seed=20 + 2 * i)
        files.append(lora(tensors, name=f"l{i}"))
        total = total + 0.5 * weight * change
    found = merged(flux, *files, merge_lora_scale=0.5, merge_lora_dampen=dampen)
    expect(flux, found, {f"{PROJ}.weight": total})


def test_the_single_lora_comes_before_the_list(flux, lora):
    one, first = low_rank(PROJ, N, K, seed=1)
    two, second = low_rank(PROJ, N, K, seed=3)
    found = merged(flux, lora(two, name="two"), merge_lora_path=lora(one, name="one"))
    expect(flux, found, {f"{PROJ}.weight": first + 0.9 * second})


def test_separate_q_k_v_go_to_their_rows_of_the_fused_weight(flux, lora):
    tensors, want = {}, torch.zeros(3 * K, K, dtype=torch.float64)
    for i, name in enumerate(("to_q", "to_v")):
        part, change = low_rank(f"transformer.transformer_blocks.0.attn.{name}", K, K, seed=30 + i)
        tensors |= part
        want[(0, 2 * K)[i] : (K, 3 * K)[i]] = change
    expect(flux, merged(flux, lora(tensors)), {f"{QKV}.weight": want})


def test_single_blocks_take_q_k_v_and_mlp(flux, lora):
    n, k = TINY_FLUX["single_blocks.1.linear1"]
    tensors, parts = {}, []
    for i, (name, rows) in enumerate(
        [("attn.to_q", k), ("attn.to_k", k), ("attn.to_v", k), ("proj_mlp", 4 * k)]
    ):
        part, change = low_rank(f"single_transformer_blocks.1.{name}", rows, k, rank=2 + i, seed=40 + i)
        tensors |= part
        parts.append(change)
    want = torch.cat(parts)
    assert want.shape == (n, k)
    expect(flux, merged(flux, lora(tensors)), {"single_blocks.1.linear1.weight": want})


def test_the_final_modulation_of_diffusers_has_its_halves_swapped(flux, lora):
    layer = "final_layer.adaLN_modulation.1"
    n, k = TINY_FLUX[layer]
    tensors, change = low_rank("transformer.norm_out.linear", n, k)
    expect(flux, merged(flux, lora(tensors)), {f"{layer}.weight": change.roll(n // 2, 0)})


def test_loha_is_the_product_of_two_products(flux, lora):
    t = {f"{PROJ}.hada_w{i}_a": rand(N, 3, seed=i, size=0.5) for i in (1, 2)}
    t |= {f"{PROJ}.hada_w{i}_b": rand(3, K, seed=5 + i, size=0.5) for i in (1, 2)}
    d = {name.rsplit(".", 1)[1]: x.double() for name, x in t.items()}
    change = (d["hada_w1_a"] @ d["hada_w1_b"]) * (d["hada_w2_a"] @ d["hada_w2_b"])
    file = lora(t | {f"{PROJ}.alpha": torch.tensor(6.0)})
    expect(flux, merged(flux, file, merge_lora_scale=0.5), {f"{PROJ}.weight": change * 0.5 * 6 / 3})


@pytest.mark.parametrize("form", ["both whole", "second factored", "both factored"])
def test_lokr_is_a_kronecker_product(flux, lora, form):
    """alpha applies where a factor is itself low-rank, as in LyCORIS."""
    first, second = rand(4, 8, seed=1, size=0.5), rand(16, 8, seed=2, size=0.5)
    t, factor = {f"{PROJ}.alpha": torch.tensor(4.0)}, 1.0
    if form == "both factored":
        a, b = rand(4, 2, seed=3, size=0.5), rand(2, 8, seed=4, size=0.5)
        t |= {f"{PROJ}.lokr_w1_a": a, f"{PROJ}.lokr_w1_b": b}
        first = a.double() @ b.double()
    else:
        t |= {f"{PROJ}.lokr_w1": first}
    if form == "both whole":
        t |= {f"{PROJ}.lokr_w2": second}
    else:
        a, b = rand(16, 2, seed=5, size=0.5), rand(2, 8, seed=6, size=0.5)
        t |= {f"{PROJ}.lokr_w2_a": a, f"{PROJ}.lokr_w2_b": b}
        second, factor = a.double() @ b.double(), 4 / 2
    change = torch.kron(first.double(), second.double()) * factor
    expect(flux, merged(flux, lora(t)), {f"{PROJ}.weight": change})


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_dora_rescales_the_merged_rows_or_columns(flux, lora, axis, scale):
    tensors, change = low_rank(PROJ, N, K, alpha=8)
    m = rand(N, 1, seed=9, size=1.0).abs() if axis == "row" else rand(1, K, seed=9, size=1.0).abs()
    file = lora(tensors | {f"{PROJ}.dora_scale": m})
    with open_checkpoint(flux) as checkpoint:
        w = checkpoint.read(f"{PROJ}.weight").double()
    v = w + change
    want = m.double() * v / v.norm(dim=1 if axis == "row" else 0, keepdim=True)
    found = merged(flux, file, merge_lora_scale=scale)
    expect(flux, found, {f"{PROJ}.weight": scale * (want - w)})


def test_dora_of_peft_on_fused_rows_after_a_plain_lora(flux, lora):
    """Order matters to DoRA: it sees what was merged before it. Its magnitudes are those of its rows."""
    plain, first = low_rank(QKV, 3 * K, K, seed=50)
    module = "transformer.transformer_blocks.0.attn.to_k"
    tensors, second = low_rank(module, K, K, style="peft", seed=60)
    m = rand(K, seed=9, size=1.0).abs()
    dora = lora(tensors | {f"{module}.lora_magnitude_vector": m}, name="dora")
    with open_checkpoint(flux) as checkpoint:
        w = checkpoint.read(f"{QKV}.weight").double()
    want = w + first
    v = want[K : 2 * K] + second
    want[K : 2 * K] = m.double().view(-1, 1) * v / v.norm(dim=1, keepdim=True)
    found = merged(flux, lora(plain, name="plain"), dora, merge_lora_dampen=False)
    expect(flux, found, {f"{QKV}.weight": want - w})


def test_whole_differences_of_weights_and_biases(flux, lora):
    diff, bias = rand(N, K, seed=70), rand(N, seed=71)
    file = lora({f"diffusion_model.{PROJ}.diff": diff, f"diffusion_model.{PROJ}.diff_b": bias})
    found = merged(flux, file, merge_lora_scale=0.5)
    expect(flux, found, {f"{PROJ}.weight": 0.5 * diff.double(), f"{PROJ}.bias": 0.5 * bias.double()})


def test_a_bias_goes_to_the_rows_of_its_fused_weight(flux, lora):
    module = "transformer.transformer_blocks.0.attn.to_k"
    tensors, change = low_rank(module, K, K, rank=4, style="peft", alpha=8)
    bias = rand(K, seed=80)
    found = merged(flux, lora(tensors | {f"{module}.lora_B.bias": bias}))
    weight, want = torch.zeros(3 * K, K, dtype=torch.float64), torch.zeros(3 * K, dtype=torch.float64)
    weight[K : 2 * K], want[K : 2 * K] = change, 2 * bias.double()
    expect(flux, found, {f"{QKV}.weight": weight, f"{QKV}.bias": want})


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (16, 8, 1, 1), (16, 4, 1, 2, 2)], ids=str)
def test_convolutions_are_merged_as_matrices(tmp_path, lora, shape):
    tensors = {**flux_weights(), "patch.weight": rand(*shape, seed=3)}
    model = save(tmp_path / "conv.safetensors", tensors)
    down, up = rand(4, *shape[1:], seed=1), rand(16, 4, *[1] * (len(shape) - 2), seed=2)
    change = (up.double().flatten(1) @ down.double().flatten(1)).view(shape)
    file = lora({"lora_unet_patch.lora_down.weight": down, "lora_unet_patch.lora_up.weight": up})
    expect(model, merged(model, file), {"patch.weight": change})


def test_directions_carry_the_energy_of_the_change(flux, lora):
    parts = {"to_q": (3, 5.0), "to_v": (2, None)}
    tensors, energy = {}, torch.zeros(K, K, dtype=torch.float64)
    for i, (name, (rank, alpha)) in enumerate(parts.items()):
        part, change = low_rank(f"transformer_blocks.0.attn.{name}", K, K, rank, alpha=alpha, seed=30 + i)
        tensors |= part
        energy += change.T @ change * 0.25
    with open_checkpoint(flux) as checkpoint:
        found = lora_directions(lora(tensors), checkpoint.shapes(), scale=0.5)
    assert found.keys() == {QKV}
    assert found[QKV].shape == (5, K)
    assert found[QKV].dtype == torch.float32
    d = found[QKV].double()
    torch.testing.assert_close(d.T @ d, energy, rtol=1e-5, atol=1e-8)


def test_directions_need_a_down_projection(flux, lora):
    with (
        open_checkpoint(flux) as checkpoint,
        pytest.raises(ConversionError, match="no directions"),
    ):
        lora_directions(lora({f"{PROJ}.diff": rand(N, K)}), checkpoint.shapes())


def other(name, n, k, **options):
    return low_rank(name, n, k, **options)[0]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (other(PROJ, N, 2 * K), r"changes \[64, 128\], but 'double.*proj.weight' is \[64, 64\]"),
        (
            other("transformer_blocks.0.attn.to_k", 3 * K, K),
            r"rows 64 to 127 of .*qkv.weight' are \[64, 64\]",
        ),
        ({f"{PROJ}.lora_down.weight": rand(4, K)}, r"has .*lora_down.weight' but no up"),
        ({f"{PROJ}.alpha": torch.tensor(1.0)}, "no up and down tensors belong to it"),
        (
            {f"{PROJ}.lora_down.weight": rand(4, K), f"{PROJ}.lora_up.weight": rand(N, 3)},
            r"lora_up.weight' \[64, 3\] and .*lora_down.weight' \[4, 64\] do not fit",
        ),
        ({f"{PROJ}.oft_blocks": rand(4, 4)}, "oft_blocks' belongs to OFT"),
        (other(f"unet.{PROJ}", N, K) | other(PROJ, N, K), "both change"),
        (other(PROJ, N, K) | other(PROJ, N, K, style="peft"), "are one tensor twice"),
        ({"x.weight": rand(4, 4)}, "not a LoRA: none of its 1 keys"),
        (
            {k: v.to(torch.int8) for k, v in other(PROJ, N, K).items()},
            "is stored as I8, not as floats",
        ),
        (other("blocks.0.img_attn.prj", N, K), r"none of its 1 modules matches .*nearest layer: 'double_bl"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_before_work(flux, lora, tensors, message):
    with pytest.raises(ConversionError, match=message):
        merged(flux, lora(tensors))


def test_a_lora_with_nan_is_refused_by_key(flux, lora):
    tensors, _ = low_rank(PROJ, N, K)
    tensors[f"{PROJ}.lora_up.weight"][3, 2] = float("nan")
    with pytest.raises(ConversionError, match=r"lora_up.weight' holds NaN or Inf"):
        merged(flux, lora(tensors))


def test_a_magnitude_that_fits_no_axis_is_refused(flux, lora):
    tensors, _ = low_rank(PROJ, N, K)
    with pytest.raises(ConversionError, match="gives no magnitude for each row or column"):
        merged(flux, lora(tensors | {f"{PROJ}.dora_scale": rand(5)}))
