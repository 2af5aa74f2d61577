"""The example workflows and the metadata that are installed with the pack."""

import json

import pytest

from convert_to_quant.converter.cli import install_nodes
from convert_to_quant.version import VERSION

FOLDER = install_nodes.source_folder()
NAMES = ("calibrate", "compare", "convert")


def workflows(name):
    """(in ComfyUI's API format, as its editor saves it)."""
    folder = FOLDER / "example_workflows"
    return json.loads((folder / "api" / f"{name}.json").read_text()), json.loads(
        (folder / f"{name}.json").read_text()
    )


def test_these_are_all():
    for folder in (FOLDER / "example_workflows", FOLDER / "example_workflows" / "api"):
        assert sorted(p.stem for p in folder.glob("*.json")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_are_one_workflow(name):
    """The same nodes, the same links, the same values."""
    api, ui = workflows(name)
    nodes = {str(n["id"]): n for n in ui["nodes"]}
    assert {i: n["type"] for i, n in nodes.items()} == {i: n["class_type"] for i, n in api.items()}
    links = {link[0]: link for link in ui["links"]}
    assert len(links) == sum(isinstance(v, list) for n in api.values() for v in n["inputs"].values())
    for i, node in nodes.items():
        given = api[i]["inputs"]
        for slot, wanted in enumerate(node["inputs"]):
            if wanted["link"] is None:
                assert wanted["name"] not in given
                continue
            _, source, output, target, at, kind = links[wanted["link"]]
            assert given[wanted["name"]] == [str(source), output]
            assert (str(target), at, kind) == (i, slot, wanted["type"])
            assert wanted["link"] in nodes[str(source)]["outputs"][output]["links"]
        values = [v for v in given.values() if not isinstance(v, list)]
        assert all(v in node["widgets_values"] for v in values)


@pytest.mark.parametrize("name", NAMES)
def test_the_packs_nodes_take_their_inputs(pack, base, name):
    """Every input is one of the node's; whatever it requires is given."""
    own = {i: n for i, n in workflows(name)[0].items() if n["class_type"].startswith("CTQ")}
    assert own
    for node in own.values():
        inputs = pack.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
        assert inputs["required"].keys() <= node["inputs"].keys()
        assert node["inputs"].keys() <= inputs["required"].keys() | inputs.get("optional", {}).keys()


def test_the_registrys_metadata():
    """The version is the package's."""
    tomllib = pytest.importorskip("tomllib")
    found = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert found["project"]["version"] == VERSION.partition(".dev")[0]
    assert found["project"]["dependencies"] == ["convert-to-quant-toolkit"]
    assert found["tool"]["comfy"]["DisplayName"]


def test_the_readme_names_every_node(pack):
    text = (FOLDER / "README.md").read_text()
    assert all(title in text for title in pack.NODE_DISPLAY_NAME_MAPPINGS.values())
