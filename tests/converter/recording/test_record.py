"""``ctq calibrate``: real pipelines and models, run on prompts; what they show fits the file to convert."""

import json
import shutil

import pytest
import torch
from models import save
from safetensors.torch import load_file
from tiny_pipelines import save_flux_pipeline, save_language_model, save_wan_pipeline, transformers

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quant.calibration import CalibrationData
from convert_to_quant.quantization import convert_to_int8


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return save_flux_pipeline(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("a red kite\n\n  two old boats \nrain\nsnow on a wire\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recorded(flux, prompts, tmp_path_factory):
    """The transformer of the pipeline, on two of the four prompts, of two sizes."""
    output = tmp_path_factory.mktemp("out") / "cal.safetensors"
    assert run(flux, output, "--prompts", prompts, *IMAGES) == 0
    return output


IMAGES = ("--count", 2, "--steps", 3, "--size", "16x16", "--size", "8x16")


def run(model, output, *flags) -> int:
    return main(["calibrate", str(model), "-o", str(output), *map(str, flags)])


def test_every_step_and_prompt_is_in_the_sample(recorded):
    """A step's time is one token of its own; an image of 16 x 16 has 64 latents, one of 8 x 16 half."""
    data = CalibrationData.load(recorded)
    assert not data.synthetic
    times = data.stats("time_text_embed.timestep_embedder.linear_1").samples
    assert times.shape[0] == 2 * 3
    assert len(times.unique(dim=0)) == 3
    assert data.stats("x_embedder").samples.shape[0] == 3 * (64 + 32)
    pooled = data.stats("time_text_embed.text_embedder.linear_1").samples
    assert len(pooled.unique(dim=0)) == 2, "two prompts"


def comfyui_names(flux, folder):
    """A float checkpoint with the names and shapes that ComfyUI has for the transformer."""
    convert_to_int8(flux / "transformer" / "diffusion_pytorch_model.safetensors", folder / "q.safetensors")
    g = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(t.shape, generator=g)
        for name, t in load_file(str(folder / "q.safetensors")).items()
        if not name.endswith(("comfy_quant", "_scale"))
    }
    return save(folder / "comfyui.safetensors", tensors)


@pytest.mark.parametrize("names", ["diffusers", "comfyui"])
def test_the_record_fits_the_checkpoint_under_either_names(flux, recorded, tmp_path, names):
    file = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    file = comfyui_names(flux, tmp_path) if names == "comfyui" else file
    report = convert_to_int8(file, tmp_path / "out.safetensors", calibration_data=str(recorded))
    assert len(report.layers) > 10
    assert {r.algorithm for r in report.layers} <= {"quip", "ldlq"}
    assert any(f"{len(report.layers)} layers matched" in note for note in report.notes), report.notes
    assert sum(r.output_db is not None for r in report.layers) > 10


def test_the_same_command_leaves_its_result_and_another_asks(flux, recorded, prompts, capsys):
    before = recorded.read_bytes()
    assert run(flux, recorded, "--prompts", prompts, *IMAGES) == 0
    assert "already there" in capsys.readouterr().out
    assert run(flux, recorded, "--prompts", prompts, *IMAGES, "--seed", 1) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert recorded.read_bytes() == before


@pytest.mark.parametrize("which", ["flux", "qwen", "t5"])
def test_influence_is_measured_of_every_layer_that_runs(flux, qwen, prompts, which, tmp_path, capsys):
    model, flags = {
        "flux": (flux, (*IMAGES, "--quiet")),
        "qwen": (qwen, ("--count", 1)),
        "t5": (flux, ("--component", "text_encoder_2", "--count", 1)),
    }[which]
    output = tmp_path / "c.safetensors"
    assert run(model, output, "--prompts", prompts, "--influence", 2, *flags) == 0
    data = CalibrationData.load(output)
    assert set(data.influence) == set(data.names())
    assert all(0 <= value < 1e3 for value in data.influence.values())
    assert max(data.influence.values()) > 1e-3
    said = capsys.readouterr()
    assert f"the influence of {len(data.influence)} layers" in said.out
    assert ("influence of layer" in said.err) == (which != "flux"), "--quiet"


def test_a_video_has_the_frames_that_are_asked_for(prompts, tmp_path, capsys):
    """Five frames are two latent ones of 2 x 2 patches; each step runs with and without the prompt."""
    wan, output = save_wan_pipeline(tmp_path / "wan"), tmp_path / "wan.safetensors"
    video = ("--count", 1, "--steps", 2, "--size", "32x32", "--frames", 5)
    assert run(wan, output, "--prompts", prompts, *video) == 0
    assert "WanPipeline" in capsys.readouterr().out
    weights = load_file(str(wan / "transformer" / "diffusion_pytorch_model.safetensors"))
    data = CalibrationData.load(output)
    assert all(f"{name}.weight" in weights for name in data.names())
    assert data.stats("blocks.0.attn1.to_q").samples.shape[0] == 2 * 2 * (2 * 2 * 2)


def test_a_text_encoder_of_a_pipeline(flux, prompts, tmp_path, capsys):
    output = tmp_path / "t5.safetensors"
    assert run(flux, output, "--prompts", prompts, "--component", "text_encoder_2", "--tokens", 50) == 0
    out, err = capsys.readouterr()
    assert "text_encoder_2 (T5EncoderModel) of FluxPipeline, up to 50 of 2,048 tokens each" in out
    assert "prompt 4 of 4" in err
    weights = load_file(str(flux / "text_encoder_2" / "model.safetensors"))
    names = CalibrationData.load(output).names()
    assert len(names) == 6
    assert all(f"{name}.weight" in weights for name in names)


def test_a_language_model_and_the_file_it_was_read_from(qwen, tmp_path, capsys):
    output = tmp_path / "qwen.safetensors"
    assert run(qwen, output, "--quiet") == 0
    out, err = capsys.readouterr()
    assert "linear layers of Qwen3ForCausalLM" in out
    assert "from 72 of 72 prompts" in out
    assert "prompt" not in err
    report = convert_to_int8(
        qwen / "model.safetensors", tmp_path / "q.safetensors", calibration_data=str(output), force=True
    )
    assert len(report.layers) == 10
    assert {r.algorithm for r in report.layers} == {"quip"}


@pytest.fixture(scope="module")
def broken(flux, qwen, tmp_path_factory):
    """Folders and files that cannot be run, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty").mkdir()
    (folder / "file.safetensors").write_bytes(b"")
    for name, change in (
        ("quantized", {"quantization_config": {"quant_method": "x"}}),
        ("unknown", {"architectures": ["NoSuchModel"]}),
        ("nameless", {"architectures": None}),
        ("torn", {}),
    ):
        shutil.copytree(qwen, folder / name)
        config = json.loads((qwen / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | change))
    (folder / "torn" / "model.safetensors").write_bytes(b"nothing")
    shutil.copytree(flux, folder / "misfit")
    narrow = transformers.T5Config(vocab_size=32, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(narrow).save_pretrained(folder / "misfit" / "text_encoder_2")
    own = {"transformer": flux / "transformer", "flux": flux, "qwen": qwen, "hub": "nobody/no-such-model"}
    return {**{p.name: p for p in folder.iterdir()}, **own}


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("empty", [], "neither model_index.json nor config.json"),
        ("file.safetensors", [], "is one file"),
        ("transformer", [], "one model of a diffusers pipeline"),
        ("quantized", [], "this model is quantized"),
        ("unknown", [], "has no model NoSuchModel"),
        ("nameless", [], "names no architecture"),
        ("torn", [], "transformers cannot load it"),
        ("hub", [], "neither a folder nor a model in the hub's cache"),
        ("flux", ["--component", "vea"], "--component names one of"),
        ("flux", ["--frames", 3], "--frames means nothing"),
        ("flux", ["--component", "text_encoder", "--steps", 3], "--steps means nothing"),
        ("misfit", ["--steps", 1, "--size", "16x16"], "failed on prompt 1: RuntimeError"),
        ("qwen", ["--size", "8x8"], "--size means nothing to Qwen3ForCausalLM"),
        ("qwen", ["--component", "transformer"], "is one model, no pipeline"),
        ("qwen", ["--prompts", "none.txt"], "--prompts none.txt: no such file"),
        ("qwen", ["--offload", "--device", "cpu"], "there is none here"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_told(model, flags, message, broken, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    assert run(broken[model], output, *flags) == 1
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in err
    assert not output.exists()


def test_the_output_is_named_for_what_it_holds(qwen, tmp_path, capsys):
    assert run(qwen, tmp_path / "out.json") == 1
    assert "is a .safetensors file" in capsys.readouterr().err
    assert run(qwen, qwen / "model.safetensors") == 1
    assert "the output is the input" in capsys.readouterr().err


def test_a_model_in_the_hubs_cache_is_found_by_its_id(qwen, tmp_path, monkeypatch):
    """Laid out as the hub's own client does it."""
    from huggingface_hub import constants

    cache = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(qwen, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run("me/tiny", tmp_path / "out.safetensors", "--count", 2, "--quiet") == 0


def test_interrupted_it_says_that_it_begins_again(qwen, tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("convert_to_quant.converter.recording.text.TextModel.run", interrupt)
    assert run(qwen, tmp_path / "out.safetensors", "--quiet") == 130
    assert "the same command begins again" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
