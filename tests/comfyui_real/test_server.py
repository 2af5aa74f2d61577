"""The node pack in a headless ComfyUI: workflows through ``/prompt`` on the loopback."""

import json
from pathlib import Path

import pytest
import torch
from comfyui_server import HERE, Refused, Server
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.converter.cli.install_nodes import source_folder
from convert_to_quant.quant.calibration import CalibrationData
from convert_to_quant.quantization import convert_to_int8


def started(tmp_path_factory, tiny, **nodes: Path):
    base = tmp_path_factory.mktemp("base")
    models = base / "models" / "diffusion_models"
    models.mkdir(parents=True)
    (models / "flux.safetensors").symlink_to(tiny("flux"))
    (base / "models" / "loras").mkdir()
    with Server(base, {"helpers": HERE / "helper_nodes", **nodes}) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny):
    """ComfyUI with the pack."""
    yield from started(tmp_path_factory, tiny, pack=source_folder())


@pytest.fixture(scope="module")
def bare(tmp_path_factory, tiny):
    """ComfyUI without it."""
    yield from started(tmp_path_factory, tiny)


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def workflow(model: list, seed: int = 1, steps: int = 1) -> dict:
    """A sampler on `model`, an output of a node that is added; node "sampled" gives the latents."""
    return {
        "load": node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "cond": node("TestConditioning", seed=1, tokens=8, width=256, pooled=768),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sampled": node(
            "KSampler",
            model=model,
            positive=["cond", 0],
            negative=["cond", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
    }


def recorded(name: str, seed: int = 1, keep: bool = True) -> dict:
    """A run with a recorder."""
    return {
        **workflow(["rec", 0], seed),
        "rec": node("CTQCalibrationRecorder", model=["load", 0], filename=name, tokens=512, memory_gb=1.0),
        "save": node("CTQSaveCalibration", latent=["sampled", 0], filename=name, keep_recording=keep),
        "hooks": node("TestCountHooks", model=["rec", 0], after=["sampled", 0]),
    }


def tokens(server: Server, file: str) -> int:
    """Image tokens seen in a calibration file; what is kept is a sample."""
    data = CalibrationData.load(server.output / "calibration" / file)
    return data.stats("double_blocks.0.img_attn.qkv").samples.shape[0]


def kept(server: Server, name: str) -> torch.Tensor:
    return torch.load(server.output / f"{name}.pt", weights_only=True).float()


def sqnr(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(10 * torch.log10(want.square().sum() / (got - want).square().sum()))


def test_a_record_grows_over_runs_and_a_freed_model(server):
    """16 image tokens a run; the hooks are off whenever the model does not run."""
    out = server.run(recorded("grow", seed=1))
    assert out["hooks"]["text"] == ["0"]
    assert tokens(server, "grow_00001_.safetensors") == 16
    server.free()
    server.run(recorded("grow", seed=2))
    assert tokens(server, "grow_00001_.safetensors") == 32
    assert not (server.output / "calibration" / "grow_00002_.safetensors").exists()


def test_a_sampling_run_is_the_same_with_a_recorder(server):
    for name, prompt in (("plain", workflow(["load", 0], 3)), ("watched", recorded("same", 3))):
        server.run({**prompt, "keep": node("TestKeepLatent", latent=["sampled", 0], name=name)})
    assert torch.equal(kept(server, "plain"), kept(server, "watched"))


def test_the_next_run_after_a_record_that_is_not_kept(server):
    """Runs, and writes a file of its own."""
    for seed in (1, 2):
        server.run(recorded("once", seed, keep=False))
    assert tokens(server, "once_00001_.safetensors") == tokens(server, "once_00002_.safetensors") == 16


def test_stop_and_clear(server):
    server.run(recorded("ctl", seed=1))
    control = lambda action: {"ctl": node("CTQCalibrationControl", filename="ctl", action=action)}
    assert server.run(control("stop"))["ctl"]["text"] == ["ctl: stopped"]
    server.run(recorded("ctl", seed=2))
    assert tokens(server, "ctl_00001_.safetensors") == 16
    assert server.run(control("clear"))["ctl"]["text"] == ["ctl: 1 records forgotten"]
    server.run(recorded("ctl", seed=3))
    assert tokens(server, "ctl_00002_.safetensors") == 16


def test_what_was_recorded_makes_a_better_file(server, tiny):
    """The converter takes the recorder's file; ComfyUI loads what it makes; the latents are nearer."""
    server.run(recorded("real", seed=11))
    calibration = server.output / "calibration" / "real_00001_.safetensors"
    models = server.base / "models" / "diffusion_models"
    for name, options in (("rtn", {}), ("ldlq", {"calibration_data": str(calibration)})):
        convert_to_int8(str(tiny("flux")), str(models / f"{name}.safetensors"), **options)
    for name in ("flux", "rtn", "ldlq"):
        prompt = workflow(["load", 0], seed=11)
        prompt["load"]["inputs"]["unet_name"] = f"{name}.safetensors"
        server.run({**prompt, "keep": node("TestKeepLatent", latent=["sampled", 0], name=name)})
    want = kept(server, "flux")
    assert 30 < sqnr(kept(server, "rtn"), want) < sqnr(kept(server, "ldlq"), want)


def saver(**inputs: object) -> dict:
    inputs = {"model": ["load", 0], "filename": "diffusion_models/saved", "convrot": True, **inputs}
    load = node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default")
    return {"load": load, "int8": node("CTQSaveInt8Checkpoint", **inputs)}


@pytest.mark.parametrize("format", ["int8_tensorwise", "int8_blockwise"])
def test_a_saved_checkpoint_loads(server, tiny, format):
    """From ComfyUI's own loader, out of the output folder; kept tensors have the dtype of the source."""
    server.run(recorded("forsave", seed=1))
    saved = server.run(saver(format=format, calibration_data="forsave"))["int8"]["text"][0]
    stored = load_file(server.output / saved)
    source = load_file(tiny("flux"))
    assert {n.removeprefix("model.diffusion_model.") for n in stored} > source.keys()
    norm = "double_blocks.0.img_attn.norm.key_norm.weight"
    assert stored[f"model.diffusion_model.{norm}"].dtype == source[norm].dtype == torch.bfloat16
    prompt = workflow(["load", 0], seed=4)
    prompt["load"]["inputs"]["unet_name"] = Path(saved).name
    server.run({**prompt, "keep": node("TestKeepLatent", latent=["sampled", 0], name=format)})
    plain = workflow(["load", 0], seed=4)
    server.run({**plain, "keep": node("TestKeepLatent", latent=["sampled", 0], name="float")})
    assert sqnr(kept(server, format), kept(server, "float")) > 20
    assert list((server.base / "temp").glob("convert_to_quant-*")) == []
    # Saved again it is written as it is.
    again = saver(format=format, calibration_data="none")
    again["load"]["inputs"]["unet_name"] = Path(saved).name
    second = server.run(again)["int8"]["text"][0]
    assert second != saved
    with safe_open(server.output / second, "pt") as file:
        assert set(file.keys()) == set(stored)
        assert all(torch.equal(file.get_tensor(n), t) for n, t in stored.items())


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/../../up", "C:\\up", "diffusion_models\\..\\..\\up"])
def test_names_of_a_workflow_do_not_lead_out(server, name):
    before = sorted(p for p in server.base.parent.rglob("*") if "up" in p.name)
    for prompt in (
        saver(format="int8_tensorwise", filename=name, calibration_data="none"),
        saver(format="int8_tensorwise", calibration_data="none", recorded=name),
        saver(format="int8_tensorwise", calibration_data=name),
        {"ctl": node("CTQCalibrationControl", filename=name, action="clear")},
    ):
        with pytest.raises(Refused, match="no file name"):
            server.run(prompt)
    assert sorted(p for p in server.base.parent.rglob("*") if "up" in p.name) == before


def test_recording_a_quantized_model_is_told(server, tiny):
    convert_to_int8(str(tiny("flux")), str(server.base / "models" / "diffusion_models" / "int8.safetensors"))
    prompt = recorded("told", seed=1)
    prompt["load"]["inputs"]["unet_name"] = "int8.safetensors"
    server.run(prompt)
    (line,) = [x for x in server.text().splitlines() if "are quantized already" in x]
    assert "recording of told: 13 layers" in line


def test_convert_quantize_and_compare(server):
    """A file of the models folder, and the model as it is loaded: both are near the original."""
    made = {
        "conv": node(
            "CTQConvertCheckpoint",
            checkpoint="diffusion_models/flux.safetensors",
            filename="",
            format="int8_tensorwise",
            convrot=True,
            calibration_data="none",
        )
    }
    (file,) = server.run(made)["conv"]["text"]
    assert file == "diffusion_models/flux-int8_tensorwise_00001_.safetensors"
    compare = {
        **{k: n for k, n in workflow(["load", 0]).items() if k != "sampled"},
        "file": node("UNETLoader", unet_name=Path(file).name, weight_dtype="default"),
        "quant": node("CTQQuantizeModel", model=["load", 0], format="int8_blockwise", convrot=False),
        **{name: comparison(name) for name in ("compare-file", "compare-quant")},
        "shown": node("PreviewImage", images=["compare-file", 0]),
    }
    out = server.run(compare)
    for name in ("compare-file", "compare-quant"):
        assert 25 < float(out[name]["text"][0].split()[1]) < 100
    assert out["shown"]["images"]


def comparison(name: str) -> dict:
    return node(
        "CTQCompareModels",
        reference=["load", 0],
        candidate=[name.removeprefix("compare-"), 0],
        positive=["cond", 0],
        negative=["cond", 0],
        latent_image=["empty", 0],
        seed=1,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        amplify=8.0,
    )


def test_example_workflows_are_listed_and_their_nodes_exist(server):
    assert sorted(server.ask("/workflow_templates")["pack"]) == ["calibrate", "compare", "convert"]
    known = server.ask("/object_info")
    for path in (source_folder() / "example_workflows" / "api").glob("*.json"):
        for step in json.loads(path.read_text()).values():
            inputs = known[step["class_type"]]["input"]
            allowed = {**inputs.get("required", {}), **inputs.get("optional", {})}
            assert inputs.get("required", {}).keys() <= step["inputs"].keys() <= allowed.keys()


def test_every_kernel_mode_runs(server):
    """On stock layers: the fused kernel's outputs are near, and off is what it was."""
    for mode in ("off", "on", "auto", "off"):
        prompt = workflow(["kernel", 0], seed=6)
        prompt["kernel"] = node("CTQInt8Kernel", model=["load", 0], fused_kernel=mode)
        prompt["load"]["inputs"]["unet_name"] = "int8.safetensors"
        server.run({**prompt, "keep": node("TestKeepLatent", latent=["sampled", 0], name=f"mode-{mode}")})
    assert sqnr(kept(server, "mode-on"), kept(server, "mode-off")) > 30
    info = server.ask("/object_info/CTQInt8Kernel")["CTQInt8Kernel"]
    assert info["input"]["required"]["fused_kernel"][1]["default"] == "off"


def test_without_the_pack_block_wise_files_are_refused_and_the_server_lives(bare, tiny):
    models = bare.base / "models" / "diffusion_models"
    convert_to_int8(str(tiny("flux")), str(models / "blocks.safetensors"), scaling_mode="block")
    prompt = workflow(["load", 0])
    prompt["load"]["inputs"]["unet_name"] = "blocks.safetensors"
    prompt["keep"] = node("TestKeepLatent", latent=["sampled", 0], name="never")
    with pytest.raises(Refused, match="int8_blockwise") as refused:
        bare.run(prompt)
    assert json.loads(str(refused.value))["exception_type"] == "KeyError"
    plain = {**workflow(["load", 0]), "keep": node("TestKeepLatent", latent=["sampled", 0], name="float")}
    bare.run(plain)
    assert torch.isfinite(kept(bare, "float")).all()
