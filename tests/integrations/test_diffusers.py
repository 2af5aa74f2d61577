"""diffusers' own from_pretrained, save_pretrained and from_single_file, on its own classes."""

import json

import pytest
import torch
from peers import peer
from running_models import MODELS, TINY, builder, diffusers, output, randomized, wide
from safetensors.torch import load_file, save_file

peer("accelerate")

from convert_to_quant.comfy.quant_ops import QuantizedTensor  # noqa: E402
from convert_to_quant.diffusers import CtqConfig, mark_quantized  # noqa: E402
from convert_to_quant.formats import CheckpointError, ConversionError  # noqa: E402
from convert_to_quant.formats.choose import written  # noqa: E402
from convert_to_quant.integrations.stored import put_together  # noqa: E402
from convert_to_quant.runtime import (  # noqa: E402
    load_quantized,
    map_for,
    plain_state_dict,
    quantize_model,
    save_quantized,
)

FAMILIES = [*MODELS, *TINY]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Equal in every parameter, quantized ones in their stored tensors."""
    mine, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return mine.keys() == theirs.keys() and all(
        isinstance(p, QuantizedTensor) == isinstance(theirs[n], QuantizedTensor) and torch.equal(p, theirs[n])
        for n, p in mine.items()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the folder of a family's model, as diffusers saves it, once."""
    made: dict = {}

    def make(family: str):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            randomized(builder(family)).save_pretrained(made[family])
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_quantized_while_it_is_loaded(family, folder, tmp_path, caplog):
    """As quantize_model does it in place; saved and read again, it is the same, silently."""
    want = randomized(builder(family))
    report = quantize_model(want)
    cls = type(want)
    got = cls.from_pretrained(folder(family), quantization_config=CtqConfig())
    assert report.quantized
    assert got.hf_quantizer.plan.forms.keys() == report.quantized.keys()
    assert got.hf_quantizer.skipped == report.skipped
    assert same(got, want)
    got.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "ctq"
    assert "calibration" not in told
    assert same(cls.from_pretrained(tmp_path), want)
    assert "were not used" not in caplog.text


def test_shards_may_divide_a_layer(folder, tmp_path, caplog):
    """A weight in one file and its scale in another: read as one."""
    model = type(builder("flux")()).from_pretrained(folder("flux"), quantization_config=CtqConfig())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    weight_map = json.loads(next(tmp_path.glob("*.index.json")).read_text())["weight_map"]
    layers = {name.rpartition(".")[0] for name in weight_map if name.endswith(".comfy_quant")}
    assert any(weight_map[f"{n}.weight"] != weight_map[f"{n}.weight_scale"] for n in layers)
    assert same(type(model).from_pretrained(tmp_path), model)
    assert "were not used" not in caplog.text


def test_a_layer_of_another_shape_is_refused(folder, tmp_path):
    model = type(builder("wan")()).from_pretrained(folder("wan"), quantization_config=CtqConfig())
    model.save_pretrained(tmp_path)
    file, name = tmp_path / "diffusion_pytorch_model.safetensors", "blocks.0.attn1.to_q.weight"
    narrow = QuantizedTensor.from_float(torch.randn(128, 64), "TensorWiseINT8Layout")
    save_file({**load_file(file), **plain_state_dict({name: narrow})}, file)
    with pytest.raises(CheckpointError, match=rf"{name} is \[128, 64\], the model needs \[128, 128\]"):
        type(model).from_pretrained(tmp_path)


def test_a_saved_folder_holds_what_comfyui_would_save(folder, tmp_path):
    model = type(builder("flux")()).from_pretrained(folder("flux"), quantization_config=CtqConfig())
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    layer = "transformer_blocks.0.attn.to_q"
    assert found[f"{layer}.weight"].dtype == torch.int8
    assert found[f"{layer}.weight_scale"].shape == (128, 1)
    assert json.loads(bytes(found[f"{layer}.comfy_quant"].tolist()))["format"] == "int8_tensorwise"
    other = builder("flux")()
    load_quantized(other, tmp_path)
    assert same(other, model)


@pytest.mark.parametrize(
    "config",
    [
        CtqConfig("int8_blockwise", block_size=32),
        CtqConfig(scaling_mode="tensor", rotation=16),
        CtqConfig(preset="none", skip=["transformer_blocks.0.attn"], include="norm_out"),
        CtqConfig(preset_strict=True, rotation=0),
    ],
    ids=repr,
)
def test_what_is_asked_for_is_done(config, folder):
    """The same words as quantize_model's."""
    cls = type(builder("flux")())
    got = cls.from_pretrained(folder("flux"), quantization_config=config)
    want = randomized(builder("flux"))
    quantize_model(
        want,
        None if config.format == "int8" else config.format,
        preset=config.preset,
        preset_strict=config.preset_strict,
        rotation=config.rotation,
        scaling=config.scaling_mode,
        block_size=config.block_size,
        skip=config.skip or None,
        include=config.include or None,
    )
    assert same(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_that_is_asked_for_is_everywhere(folder, tmp_path, dtype):
    """In plain weights and in the logical dtype of quantized ones, while quantizing and when read again."""
    cls = type(builder("z-image")())
    model = cls.from_pretrained(folder("z-image"), torch_dtype=dtype, quantization_config=CtqConfig())
    assert {p.dtype for p in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert same(again, model)


def test_a_pattern_that_matches_nothing_is_refused(folder):
    with pytest.raises(ValueError, match="skip: the pattern 'bloks' matches no linear layer"):
        type(builder("wan")()).from_pretrained(folder("wan"), quantization_config=CtqConfig(skip=["bloks"]))


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *((f, "int8_tensorwise") for f in ("auraflow", "flux2", "ltx-video", "qwen-image", "sd3", "z-image")),
        *(("wan", form.name) for form in written()),
    ],
)
def test_a_comfyui_file_is_read(family, layout, folder, tmp_path):
    """from_single_file on a quantized file and on a float one, under ComfyUI's names and prefix.

    Of the other families diffusers divides weights by the released models' sizes, or knows no such file.
    """
    want = randomized(builder(family))
    words = {"prefix": "model.diffusion_model.", "comfyui_names": True}
    plain = save_quantized(want, tmp_path / "plain.safetensors", **words)
    quantize_model(want, layout, block_size=32)
    path = save_quantized(want, tmp_path / "quantized.safetensors", **words)
    cls, config = type(want), CtqConfig(layout, block_size=32)
    for file, asked in ((path, CtqConfig()), (plain, config)):
        got = cls.from_single_file(file, config=str(folder(family)), quantization_config=asked)
        assert same(got, want)
    got.save_pretrained(tmp_path / "folder")
    assert same(cls.from_pretrained(tmp_path / "folder"), want)


RELEASED = {
    "flux": ("convert_flux_transformer_checkpoint_to_diffusers", {}),
    "chroma": ("convert_chroma_transformer_checkpoint_to_diffusers", {}),
    "lumina2": ("convert_lumina2_to_diffusers", {"hidden_size": 2304, "num_kv_heads": 8}),
}
"""Families whose converters divide by fixed sizes: the converter, and what makes the model's rows those."""


@pytest.mark.parametrize("family", RELEASED)
def test_diffusers_own_converters_take_quantized_weights_apart_by_rows(family):
    """On rows of the released width, and few columns: the codes land where the floats would."""
    from diffusers.loaders import single_file_utils as theirs

    name, sizes = RELEASED[family]
    with torch.device("meta"):
        model = wide(family, **sizes)
    rows = {k: v.shape[0] if v.dim() else 1 for k, v in model.state_dict().items()}
    g, state, linears = torch.Generator().manual_seed(0), {}, set()
    for source, mapped in map_for(model).inverse(rows).items():
        linear = all(
            isinstance(model.get_submodule(t.rpartition(".")[0]), torch.nn.Linear) for t in mapped.targets
        )
        count = sum(rows[t] for t in mapped.targets)
        if linear and source.endswith(".weight"):
            linears.add(source)
            w = torch.randn(count, 4, generator=g)
            state[source] = QuantizedTensor.from_float(w, "TensorWiseINT8Layout", rotation=4)
        else:
            state[source] = torch.randn(count, generator=g)
    stored = put_together(plain_state_dict(state))
    assert stored.keys() == state.keys()
    convert = getattr(theirs, name)
    dense = {k: t.dequantize() if k in linears else t for k, t in state.items()}
    got, want = convert(dict(stored)), convert(dense)
    assert got.keys() == want.keys() == rows.keys()
    for key, tensor in want.items():
        quantized = tensor.dim() == 2
        assert isinstance(got[key], QuantizedTensor) == quantized, key
        assert torch.equal(got[key].dequantize(torch.float32) if quantized else got[key], tensor), key


def test_integers_that_nothing_explains_are_refused(folder, tmp_path):
    model = randomized(builder("wan"))
    quantize_model(model)
    tensors = plain_state_dict(model)
    del tensors["blocks.0.attn1.to_q.comfy_quant"]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"blocks.0.attn1.to_q is stored as torch.int8 .*load_quantized"
    ):
        type(model).from_single_file(
            tmp_path / "a.safetensors", config=str(folder("wan")), quantization_config=CtqConfig()
        )


def test_a_model_quantized_in_place_is_saved_once_it_is_marked(tmp_path):
    model = randomized(builder("flux"))
    with pytest.raises(ConversionError, match="FluxTransformer2DModel has no quantized weights"):
        mark_quantized(model)
    quantize_model(model)
    with pytest.raises(RuntimeError, match="save_quantized"):
        model.save_pretrained(tmp_path / "a")
    mark_quantized(model)
    model.save_pretrained(tmp_path / "b")
    assert same(type(model).from_pretrained(tmp_path / "b"), model)
    linear = torch.nn.Linear(128, 128)
    quantize_model(linear)
    with pytest.raises(ConversionError, match="Linear is a model of neither diffusers nor transformers"):
        mark_quantized(linear)


def test_it_is_dequantized_and_saved_as_floats(folder, tmp_path):
    cls = type(builder("flux")())
    model = cls.from_pretrained(folder("flux"), quantization_config=CtqConfig())
    want = {n: p.dequantize() if isinstance(p, QuantizedTensor) else p for n, p in model.named_parameters()}
    model.dequantize()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert not any(isinstance(p, QuantizedTensor) for p in again.parameters())
    assert all(torch.equal(p, want[n]) for n, p in again.named_parameters())


def test_a_pipeline_takes_it_per_component(tmp_path):
    """PipelineQuantizationConfig: a transformer and a text encoder, each with its own words or all alike."""
    transformers = peer("transformers")
    sizes = {"vocab_size": 100, "d_model": 128, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 4}
    encoder = transformers.T5EncoderModel(transformers.T5Config(**sizes)).eval()
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=encoder,
        vae=vae,
        transformer=randomized(builder("pixart")),
        scheduler=diffusers.DDIMScheduler(),
    )
    pipe.save_pretrained(tmp_path / "a")
    asked = {
        "mapping": diffusers.PipelineQuantizationConfig(
            quant_mapping={
                "transformer": CtqConfig("int8_blockwise", block_size=32),
                "text_encoder": CtqConfig(),
            }
        ),
        "backend": diffusers.PipelineQuantizationConfig(
            quant_backend="ctq", quant_kwargs={"format": "int8"}, components_to_quantize=["transformer"]
        ),
    }
    for name, config in asked.items():
        got = diffusers.PixArtSigmaPipeline.from_pretrained(
            tmp_path / "a", quantization_config=config, tokenizer=None
        )
        kinds = {
            part: {p._layout_type for p in getattr(got, part).parameters() if isinstance(p, QuantizedTensor)}
            for part in ("transformer", "text_encoder", "vae")
        }
        if name == "mapping":
            assert kinds == {
                "transformer": {"BlockWiseINT8Layout"},
                "text_encoder": {"TensorWiseINT8Layout"},
                "vae": set(),
            }
        else:
            assert kinds == {"transformer": {"TensorWiseINT8Layout"}, "text_encoder": set(), "vae": set()}
        got.save_pretrained(tmp_path / name)
        again = diffusers.PixArtSigmaPipeline.from_pretrained(tmp_path / name, tokenizer=None)
        assert same(again.transformer, got.transformer)
        assert same(again.text_encoder, got.text_encoder)


def test_outputs_stay_near(folder):
    """The loaded model runs: against the same with dequantized weights, by the rounding of activations."""
    build, inputs = MODELS["flux"][:2]
    model = type(build()).from_pretrained(folder("flux"), quantization_config=CtqConfig())
    given = inputs(torch.Generator().manual_seed(1))
    got = output(model, given)
    model.dequantize()
    noise = (got - output(model, given)).double().square().sum()
    assert 10 * torch.log10(got.double().square().sum() / noise) > 30
