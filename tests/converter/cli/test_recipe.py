"""Options as a recipe: printed, read, carried by a file."""

import json
import sys
from itertools import pairwise

import pytest
from models import block_weights, save
from safetensors import safe_open

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.options.recipe import KEY, as_flags, read_recipe, recipe_of
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.formats.errors import ConversionError

OPTIONS = ["--format", "w4a8", "--no-verify", "--wan", "--convrot", "--target-size", "8GB", "--extract-lora"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m.safetensors", block_weights())
    return tmp_path


def metadata(file):
    with safe_open(file, "pt") as f:
        return f.metadata() or {}


def test_what_is_printed_is_read(folder, capsys):
    assert main(["recipe", *OPTIONS, "--merge-loras", "/x/a.safetensors", "b.safetensors"]) == 0
    text = capsys.readouterr().out
    (folder / "r.yaml").write_text(text)
    assert 'merge_lora_paths: ["/x/a.safetensors", "b.safetensors"]' in text
    assert main(["recipe", "--recipe", "r.yaml"]) == 0
    assert capsys.readouterr().out == text
    assert main(["recipe", "--recipe", "r.yaml", "--format", "fp8", "--no-convrot"]) == 0
    other = text.replace('"w4a8"', '"fp8"').replace("convrot: true", "convrot: false")
    assert capsys.readouterr().out == other, "the command line comes first"


def test_the_command_line_of_a_recipe_gives_the_recipe(folder, capsys):
    settings = Settings(
        input_file="m", format="w4a8", verify=False, keep_sets=("wan",), convrot=False, merge_lora_scale=0.5
    )
    assert main(["recipe", *as_flags(settings)]) == 0
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: json.loads(value) for name, value in printed.items()} == recipe_of(settings)


@pytest.mark.parametrize("name", ["r.yaml", "r.json"])
def test_a_file_that_is_too_large_for_a_recipe_is_not_read(folder, capsys, name):
    text = json.dumps({"format": "fp8"})
    (folder / name).write_text(text + " " * ((1 << 20) - len(text)))
    assert main(["recipe", "--recipe", name]) == 0
    assert capsys.readouterr().out == 'format: "fp8"\n'
    with open(name, "r+b") as f:
        f.truncate(1 << 40)  # a hole: it takes no room on the disk
    assert main(["recipe", "--recipe", name]) == 1
    assert capsys.readouterr().err == (f"error: {name}: is larger than the 1 MiB that it may have\n")


@pytest.mark.parametrize("name", ["r.yaml", "r.json"])
def test_a_conversion_follows_a_recipe(folder, name):
    (folder / name).write_text(json.dumps({"format": "fp8", "save-recipe": True}))
    assert main(["-i", "m.safetensors", "-o", "o.safetensors", "--recipe", name, "--quiet"]) == 1
    (folder / name).write_text(json.dumps({"format": "fp8"}))
    assert main(["-i", "m.safetensors", "-o", "o.safetensors", "--recipe", name, "--quiet"]) == 0
    with safe_open("o.safetensors", "pt") as f:
        assert f.get_slice("blocks.0.mlp.fc1.weight").get_dtype() == "F8_E4M3"


def test_a_file_carries_its_recipe_without_folders(folder, capsys):
    (folder / "l").mkdir()
    (folder / "l" / "layers.json").write_text("{}")
    arguments = ["--layer-config", str(folder / "l" / "layers.json"), "--format", "fp8", "--quiet"]
    assert main(["-i", "m.safetensors", "-o", "o.safetensors", "--save-recipe", *arguments]) == 0
    assert str(folder) not in str(metadata("o.safetensors"))
    capsys.readouterr()
    assert main(["recipe", "o.safetensors"]) == 0
    assert capsys.readouterr().out == 'layer_config: "layers.json"\nformat: "fp8"\n'
    assert main(["recipe", "m.safetensors"]) == 1
    assert "carries no recipe; --save-recipe writes one" in capsys.readouterr().err


def test_a_recipe_of_the_source_is_not_carried_on(folder):
    save(folder / "n.safetensors", block_weights(), {KEY: '{"format": "w4a8"}', "kept": "yes"})
    assert main(["-i", "n.safetensors", "-o", "o.safetensors", "--quiet"]) == 0
    assert metadata("o.safetensors")["kept"] == "yes"
    assert KEY not in metadata("o.safetensors")


def test_what_a_file_says_is_not_trusted(folder, capsys):
    for text, message in {
        '{"format": "w4a8\\u001b[31m"}': "there is no format",
        '{"output_file": "/etc/passwd"}': "output_file is said on the command line",
        '{"formt": "int8"}': "did you mean 'format'?",
        '{"verify": "no"}': "verify: must be true or false, not str",
        '{"merge_lora_paths": [1]}': "must be a list of texts",
        '{"keep_sets": ["nothing"]}': "keep_sets: 'nothing'",
        '{"convrot_group_size": [[]]}': "must be a text, a number, true or false, not list",
        "[" * 9999: "",
        "[]": "a recipe is a table of options",
    }.items():
        save(folder / "n.safetensors", block_weights(), {KEY: text})
        assert main(["recipe", "n.safetensors"]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert "\x1b" not in told
        assert told.count("\n") == 1


def test_yaml_that_is_none_is_refused(folder, capsys, monkeypatch):
    bomb = "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))
    for text in ("format: [", bomb, "!!python/object/apply:os.system [ls]", "- format", "[" * 600):
        (folder / "r.yaml").write_text(text)
        assert main(["-i", "m.safetensors", "--recipe", "r.yaml"]) == 1
        assert capsys.readouterr().err.startswith("error: r.yaml: ")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["-i", "m.safetensors", "--recipe", "r.yaml"]) == 1
    assert "pip install pyyaml; or write JSON" in capsys.readouterr().err


def test_options_that_contradict_each_other_are_refused_with_the_file():
    with pytest.raises(ConversionError, match=r"^r: --min-format bounds the formats that --target-size"):
        read_recipe({"min_format": "int8"}, "r")
