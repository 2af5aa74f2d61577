"""ComfyUI checkpoints in diffusers models: names, fused projections, outputs."""

import pytest
import torch
from catalogs import SMALL, load
from running_models import MODELS, diffusers, flux, output, randomized, sqnr, wan

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.runtime import (
    CheckpointError,
    empty_weights,
    load_quantized,
    map_for,
    quantize_model,
    save_quantized,
)


@pytest.mark.parametrize("family", MODELS, ids=str)
@pytest.mark.parametrize("layout", ["int8_tensorwise", "int8_blockwise"])
def test_a_comfyui_checkpoint_runs_in_diffusers(family, layout, tmp_path):
    """Written under ComfyUI's names with fused projections, loaded into a diffusers model on the meta device.

    The loaded weights are those that were written, bit for bit; outputs against the same model with
    dequantized weights differ by the rounding of activations only.
    """
    build, inputs, known = MODELS[family]
    model = randomized(build)
    quantize_model(model, layout, block_size=32)
    path = save_quantized(
        model, tmp_path / "comfy.safetensors", prefix="model.diffusion_model.", comfyui_names=True
    )
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        assert f"model.diffusion_model.{known}" in f.keys()  # noqa: SIM118
        assert f"model.diffusion_model.{known}_scale" in f.keys()  # noqa: SIM118
    with empty_weights():
        other = build().eval()
    report = load_quantized(other, path)
    assert report.quantized
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, p in mine.items():
        assert torch.equal(p, theirs[name]), name
        assert type(p) is type(theirs[name])
    given = inputs(torch.Generator().manual_seed(1))
    got = output(other, given)
    assert torch.equal(got, output(model, given))
    for module in other.modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            module.weight = torch.nn.Parameter(module.weight.dequantize(), requires_grad=False)
    assert sqnr(got, output(other, given)) > 25


RELEASED = {
    "flux1-dev": lambda: flux(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        axes_dims_rope=(16, 56, 56),
    ),
    "qwen-image": lambda: diffusers.QwenImageTransformer2DModel(num_layers=2),
    "z-image": lambda: diffusers.ZImageTransformer2DModel(n_layers=2),
    "wan2.1-t2v-14b": lambda: wan(
        num_attention_heads=40,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=13824,
        num_layers=2,
        image_dim=None,
        added_kv_proj_dim=None,
        rope_max_seq_len=1024,
    ),
}


@pytest.mark.parametrize("name", RELEASED, ids=str)
def test_names_of_released_checkpoints_map_onto_the_released_model(name):
    """Every name of the real file (two blocks of it) has its place in the real class, shapes included."""
    _, shapes = load(SMALL, name)
    with torch.device("meta"):
        model = RELEASED[name]()
    table, wanted, filled = map_for(model), {k: tuple(v.shape) for k, v in model.state_dict().items()}, {}
    for source, shape in shapes.items():
        targets = table(source).targets
        if len(targets) > 1:
            assert shape[0] == sum(wanted[t][0] for t in targets), source
        for target in targets:
            assert target not in filled
            filled[target] = shape if len(targets) == 1 else (wanted[target][0], *shape[1:])
    assert filled == wanted
    assert {k: m.targets for k, m in table.inverse(filled).items()} == {k: table(k).targets for k in shapes}


@pytest.mark.parametrize("name", ["flux1-dev", "z-image", "wan2.1-t2v-14b"])
def test_rows_land_where_diffusers_own_converter_puts_them(name):
    """Against an independent implementation, with the row's number as its value."""
    from diffusers.loaders import single_file_utils as theirs

    convert = {
        "flux1-dev": theirs.convert_flux_transformer_checkpoint_to_diffusers,
        "z-image": theirs.convert_z_image_transformer_checkpoint_to_diffusers,
        "wan2.1-t2v-14b": theirs.convert_wan_transformer_to_diffusers,
    }[name]
    _, shapes = load(SMALL, name)
    marked = {k: torch.arange(s[0]).view(-1, 1) + 100_000 * i for i, (k, s) in enumerate(shapes.items())}
    want = convert(dict(marked))
    with torch.device("meta"):
        model = RELEASED[name]()
    state = model.state_dict()
    table, rows, found = map_for(model), {k: v.shape[0] for k, v in state.items()}, {}
    for source, values in marked.items():
        mapped, start = table(source), 0
        if mapped.swapped(state):
            values = torch.cat(values.chunk(2)[::-1])
        for target in mapped.targets:
            found[target] = values[start : start + rows[target]]
            start += rows[target]
    assert found.keys() == want.keys()
    assert all(torch.equal(found[k], want[k]) for k in want)


def test_block_rows_that_cannot_be_split_are_refused(tmp_path):
    """q, k and v of 128 rows do not lie on blocks of 256."""
    model = randomized(flux)
    quantize_model(model, "int8_blockwise", block_size=256)
    with pytest.raises(CheckpointError, match="no whole blocks of 256"):
        save_quantized(model, tmp_path / "a.safetensors", comfyui_names=True)
    model = randomized(flux)
    path = save_quantized(model, tmp_path / "a.safetensors", comfyui_names=True)
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    q = QuantizedTensor.from_float(
        tensors["double_blocks.0.img_attn.qkv.weight"], "BlockWiseINT8Layout", block_size=256
    )
    from convert_to_quant.quant.runtime.stored import tensors_of

    tensors.update({f"double_blocks.0.img_attn.qkv.{k}": v for k, v in tensors_of(q).items()})
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="do not lie on blocks of 256"):
        load_quantized(flux(), path)


def test_diffusers_names_load_as_they_are(tmp_path):
    """A checkpoint saved under the model's own names needs no table, with or without a prefix."""
    model = randomized(flux)
    quantize_model(model)
    path = save_quantized(model, tmp_path / "a.safetensors", prefix="transformer.")
    other = flux()
    assert load_quantized(other, path).prefix == "transformer."
    assert torch.equal(other.proj_out.weight, model.proj_out.weight)
