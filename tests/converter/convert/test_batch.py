"""Several models in one run: which are found, where they go, which LoRAs they get, what a failure costs."""

import json
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lora_files import flux_weights, low_rank, save_lora
from models import block_weights, save, save_sharded
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.convert.batch import plan_batch
from convert_to_quant.converter.convert.lora_map import LoraChoice, LoraMap, read_lora_map
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.quantization import ConversionError, convert_many_to_int8, convert_to_int8

TAG = "-int8_row_convrot.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Two models, and one file that cannot be converted."""
    for i, name in enumerate(("a", "c")):
        save(tmp_path / f"{name}.safetensors", block_weights(seed=i))
    (tmp_path / "b.safetensors").write_bytes(b"not a checkpoint")
    return tmp_path


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_several_inputs_go_on_after_a_failure_and_end_with_code_1(folder, capsys):
    inputs = [str(folder / f"{n}.safetensors") for n in "abc"]
    out = folder / "out"
    assert main(["-i", *inputs, "-o", f"{out}/"]) == 1
    assert names(out) == [f"a{TAG}", f"c{TAG}"]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("a.safetensors  done in")
    assert table[1].startswith("b.safetensors  failed: ")
    assert "truncated or not a safetensors file" in table[1]
    assert table[3] == "2 of 3 models done, 1 failed"


def test_each_output_is_that_of_a_single_conversion(folder):
    report = convert_many_to_int8([folder / "a.safetensors", folder / "c.safetensors"], folder / "out")
    assert report.summary() == "2 of 2 models done, 0 failed"
    for name in "ac":
        single = convert_to_int8(
            folder / f"{name}.safetensors", folder / "single.safetensors", overwrite=True
        )
        batch = (folder / "out" / f"{name}{TAG}").read_bytes()
        assert (folder / "single.safetensors").read_bytes() == batch
        assert len(single.layers) == 6


def test_inputs_may_be_named_in_several_places(folder):
    a, c = str(folder / "a.safetensors"), str(folder / "c.safetensors")
    assert main(["-i", a, "--no-convrot", "-i", c]) == 0
    assert {"a-int8_row.safetensors", "c-int8_row.safetensors"} < set(names(folder))


def test_a_pattern_finds_models_in_a_folder(folder, capsys):
    assert main(["-i", str(folder), "--pattern", "[ac].*", "-o", str(folder / "o")]) == 0
    assert names(folder / "o") == [f"a{TAG}", f"c{TAG}"]
    assert "[2/2]" in capsys.readouterr().err


def test_a_batch_run_again_leaves_its_own_outputs_out(folder, capsys):
    (folder / "b.safetensors").unlink()
    command = ["-i", str(folder), "--pattern", "*.safetensors"]
    assert main(command) == 0
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2 of 2 models done, 0 failed"
    assert captured.err.count("it is this batch's own output") == 2


def test_shards_count_once(tmp_path):
    save_sharded(tmp_path / "m", block_weights())
    jobs = plan_batch([str(tmp_path / "m")], settings(), "*.safetensors").jobs
    assert [job.input_file for job in jobs] == [str(tmp_path / "m" / "model.safetensors.index.json")]
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    with pytest.raises(ConversionError, match=r"is one shard of a model without model\.safetensors\.index"):
        plan_batch([str(tmp_path / "m")], settings(), "*.safetensors")


def test_a_folder_without_a_pattern_is_one_model(tmp_path):
    index = save_sharded(tmp_path / "m", block_weights())
    assert main(["-i", str(index.parent), "-o", str(tmp_path / "q.safetensors")]) == 0
    assert (tmp_path / "q.safetensors").exists()


def settings(**options):
    return Settings(input_file="x", **options)


@pytest.mark.parametrize(
    ("inputs", "options", "pattern", "message"),
    [
        ((".",), {}, "*.safetensor", "no file matches --pattern '*.safetensor'; did you mean"),
        (("a.safetensors",), {}, "*", "a.safetensors is a file"),
        (("none",), {}, "*", "none does not exist"),
        (("a.safetensors", "c.safetensors"), {"output_file": "x.safetensors"}, None, "-o names a folder"),
        (("a.safetensors", "c.safetensors"), {"output_file": "b.safetensors"}, None, "-o names a folder"),
        (("a.safetensors", "s/a.safetensors"), {"output_file": "o"}, None, "convert them into two folders"),
    ],
)
def test_what_is_refused_before_the_first_model(folder, monkeypatch, inputs, options, pattern, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ConversionError) as e:
        plan_batch(inputs, settings(**options), pattern)
    assert message in str(e.value)
    assert not (folder / "o").exists()


def test_an_unforeseen_error_costs_one_model(folder, monkeypatch):
    from convert_to_quant.converter.convert import run as convert

    whole = convert.convert

    def fails_for_a(job):
        if job.input_file.endswith("a.safetensors"):
            raise ZeroDivisionError("division by zero")
        return whole(job)

    monkeypatch.setattr(convert, "convert", fails_for_a)
    report = convert_many_to_int8([folder], pattern="[ac].safetensors")
    failed, done = (o.error for o in report.outcomes)
    assert failed.startswith("unexpected ZeroDivisionError at test_batch.py:")
    assert done == ""


def test_json_tells_of_every_model(folder):
    target = folder / "report.json"
    assert main(["-i", str(folder), "--pattern", "[abc].safetensors", "--json", str(target)]) == 1
    found = json.loads(target.read_text())
    assert found["summary"] == "2 of 3 models done, 1 failed"
    assert [bool(m["error"]) for m in found["models"]] == [False, True, False]
    assert len(found["models"][0]["report"]["layers"]) == 6


def test_a_dry_run_of_a_batch_writes_nothing(folder, capsys):
    before = names(folder)
    command = ["-i", str(folder), "--pattern", "[ac].safetensors", "--dry-run"]
    assert main([*command, "-o", str(folder / "o")]) == 0
    assert names(folder) == before
    assert capsys.readouterr().out.count("6 layers to INT8") == 2
    assert main([*command, "create-template"]) == 1
    assert "makes the template of one model" in capsys.readouterr().err


def test_a_batch_needs_a_model():
    with pytest.raises(ValueError, match="at least one input"):
        convert_many_to_int8([])
    with pytest.raises(TypeError, match="did you mean 'scaling_mode'"):
        convert_many_to_int8(["a"], scaling="row")


# LoRAs


@pytest.fixture
def lora_folder(tmp_path):
    """Two models and two LoRAs for them."""
    for name in ("flux-a", "flux-b"):
        save(tmp_path / f"{name}.safetensors", flux_weights())
    (tmp_path / "loras").mkdir()
    for seed, name in enumerate(("x", "y")):
        tensors, _ = low_rank("double_blocks.0.img_attn.proj", 64, 64, seed=seed)
        save_lora(tmp_path / "loras" / f"{name}.safetensors", tensors)
    return tmp_path


@pytest.mark.parametrize("flag", ["--lora-map", "--lora_map"])
def test_each_model_gets_its_loras(lora_folder, flag):
    loras = [str(lora_folder / "loras" / f"{n}.safetensors") for n in "xy"]
    entries = {
        "flux-a.safetensors": ["loras/x.safetensors", "loras/y.safetensors"],
        "*-b*": {"loras": "loras/y.safetensors", "scale": 0.5, "dampen": False},
    }
    path = lora_folder / "map.json"
    path.write_text(json.dumps(entries))
    models = [str(lora_folder / f"flux-{n}.safetensors") for n in "ab"]
    assert main(["-i", *models, "-o", str(lora_folder / "o"), flag, str(path)]) == 0
    alone = {
        "a": convert_to_int8(models[0], lora_folder / "a1.safetensors", merge_lora_paths=loras),
        "b": convert_to_int8(
            models[1], lora_folder / "b1.safetensors", merge_lora_path=loras[1], merge_lora_scale=0.5
        ),
    }
    for name, report in alone.items():
        expected = load_file(report.output)
        found = load_file(str(lora_folder / "o" / f"flux-{name}{TAG}"))
        assert all(torch.equal(found[k], expected[k]) for k in expected), name
    differ = load_file(alone["a"].output), load_file(alone["b"].output)
    assert not torch.equal(*(d["double_blocks.0.img_attn.proj.weight"] for d in differ))


def test_a_map_works_for_one_model_and_models_without_a_key_keep_the_command_lines(lora_folder):
    path = lora_folder / "map.json"
    path.write_text('{"flux-a*": []}')
    batch = plan_batch(
        [str(lora_folder / f"flux-{n}.safetensors") for n in "ab"],
        settings(merge_lora_path="z.safetensors"),
        lora_map=str(path),
    )
    assert [(j.merge_lora_path, j.merge_lora_paths) for j in batch.jobs] == [
        (None, ()),
        ("z.safetensors", ()),
    ]
    assert main(["-i", str(lora_folder / "flux-a.safetensors"), "--lora-map", str(path)]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object is expected, with model names as its keys"),
        ({"flux-a.safetensors": 1}, "a list of LoRA files is expected, not 1"),
        ({"flux-a.safetensors": {"lora": []}}, "there is no field 'lora'; did you mean 'loras'"),
        ({"flux-a.safetensors": {"loras": [], "scale": "1"}}, "scale: must be a finite number, not '1'"),
        ({"flux-a.safetensors": {"loras": [], "dampen": 1}}, "dampen: must be true or false"),
        ({"flux-a.safetensors": ["loras/z.safetensors"]}, "z.safetensors: no such file"),
        ({"flux-a.safetensors": ["9" * 5000]}, "no such file; paths start"),
        ({"flux_a.safetensors": []}, "is the name of no model here; the nearest is 'flux-a.safetensors'"),
    ],
)
def test_mistakes_in_a_map_are_told(lora_folder, capsys, content, message):
    path = lora_folder / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert main(["-i", str(lora_folder / "flux-a.safetensors"), "--lora-map", str(path)]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(ConversionError, match="no such file"):
        read_lora_map(str(lora_folder / "absent.json"))


@given(
    keys=st.lists(st.sampled_from(["a", "b", "a*", "*", "?b", "ab"]), unique=True),
    model=st.text("ab", max_size=3),
)
def test_the_first_key_that_fits_is_the_one(keys, model):
    found = LoraMap("", {k: LoraChoice((k,)) for k in keys}).options(model)
    first = [k for k in keys if fnmatchcase(model, k)][:1]
    assert found.get("merge_lora_paths", ()) == tuple(first)
