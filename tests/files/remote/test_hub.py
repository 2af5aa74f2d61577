"""Models on a hub of the test's own: a real HTTP server, talked to by huggingface_hub."""

import sys

import pytest
from fake_hub import COMMIT, TOKEN, fake_hub
from models import block_weights, save, save_sharded

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats.errors import CheckpointError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    one = save(tmp_path / "m.safetensors", block_weights()).read_bytes()
    index = save_sharded(tmp_path / "shards", block_weights())
    shards = {f"transformer/{f.name}": f.read_bytes() for f in index.parent.iterdir()}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    repositories = {
        "org/one": {"m.safetensors": one, "README.md": b"#"},
        "org/pipeline": {"model_index.json": b"{}", **shards},
        "org/two": {"a.safetensors": one, "b.safetensors": one},
    }
    with fake_hub(monkeypatch, repositories) as running:
        yield running


PLACES = (
    "org/one",
    "org/one/m.safetensors",
    "hf://org/one@main/m.safetensors",
    f"org/one@{COMMIT}",
    "org/pipeline/transformer",
    "org/pipeline/transformer/model.safetensors.index.json",
)


def test_a_model_is_read_by_parts(hub):
    tensors = block_weights()
    for place in PLACES:
        with open_checkpoint(place) as found:
            assert sorted(found.tensors) == sorted(tensors)
            assert found.read("final_layer.weight").equal(tensors["final_layer.weight"])
            assert all(f"@{COMMIT}/" in f.address for f in found.files), "all of it is of one commit"
    assert all(r.range for r in hub.storage.requests)


def test_the_token_goes_to_the_hub_and_no_further(hub, capfd):
    hub.gated.add("org/one")
    with open_checkpoint(f"{hub.server.url}/org/one/blob/main/m.safetensors") as found:
        found.read("final_layer.weight")
    assert {r.headers.get("authorization") for r in hub.server.requests} == {f"Bearer {TOKEN}"}
    assert hub.storage.requests
    assert all("authorization" not in r.headers for r in hub.storage.requests)
    assert TOKEN not in "".join(capfd.readouterr())


REFUSED = {
    "org/two": r"holds 2 checkpoints; name one of: hf://org/two/a.safetensors, hf://org/two/b.safetensors",
    "org/pipeline": "no .safetensors file in this folder; name one of: hf://org/pipeline/transformer",
    "org/one/n.safetensors": "the repository holds no such file; did you mean m.safetensors?",
    "org/one@v9": "org/one has no revision v9",
    "org/none": "org/none: there is no folder org, and the hub has no model org/none, or one that is only",
    "hf://org/none": "hf://org/none: the hub has no model org/none",
    "shardz/old/m.safetensors": "there is no folder shardz; did you mean shards?, and the hub has no model",
}


@pytest.mark.parametrize(("place", "message"), REFUSED.items())
def test_what_is_not_there_is_told(hub, tmp_path, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(place)
    assert message in str(error.value)


def test_a_model_on_terms_is_told(hub, monkeypatch):
    hub.gated.add("org/one")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(CheckpointError, match=r"accept them at .*/org/one, then run 'hf auth login'"):
        open_checkpoint("org/one")


def test_what_is_here_is_not_asked_for(hub, tmp_path, monkeypatch):
    (tmp_path / "empty" / "org" / "one").mkdir(parents=True)
    save(tmp_path / "empty" / "org" / "one" / "m.safetensors", block_weights())
    with open_checkpoint("org/one") as found:
        assert found.is_here
    for place in ("org/none", "nowhere.safetensors", "nowhere/m.safetensors", "./x/y"):
        with pytest.raises(CheckpointError, match=r"no such file or folder|no folder"):
            open_checkpoint(place)
    assert hub.server.requests == []


def test_offline_the_cache_is_read(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hf_hub_download("org/one", "m.safetensors", cache_dir=str(tmp_path / "cache"))
    asked = len(hub.server.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for place in ("org/one", "org/one/m.safetensors"):
        with open_checkpoint(place) as found:
            assert found.is_here
    with pytest.raises(CheckpointError, match=r"no folder org; the hub is not asked .* does not hold it"):
        open_checkpoint("org/two")
    assert len(hub.server.requests) == asked


def test_a_busy_hub_is_waited_for_and_an_absent_one_is_not(hub, monkeypatch):
    hub.server.faults = ["broken", "busy"]
    with open_checkpoint("org/one") as found:
        assert found.tensors
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"no folder org, and the hub \(.*:9\) cannot be reached"):
        open_checkpoint("org/one")


@pytest.mark.parametrize(
    ("package", "place", "message"),
    [
        (
            "huggingface_hub",
            "org/one",
            "org/one: no such file or folder here; to look for it on the Hu",
        ),
        ("huggingface_hub", "hf://org/one", r"huggingface_hub is needed: pip install '.*\[hub\]'"),
        ("fsspec", "memory://m", r"fsspec is needed: pip install '.*\[hub\]'"),
    ],
)
def test_a_missing_package_is_asked_for_by_name(hub, monkeypatch, package, place, message):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(place)
