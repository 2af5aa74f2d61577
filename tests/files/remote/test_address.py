"""Where what a person names is: here, or elsewhere; and what of an address is shown."""

from pathlib import Path

import pytest

from convert_to_quant.files.remote.address import HubPlace, RemoteFile, hub_place, located, shown

PLACES = {
    "model.safetensors": None,
    "there/model": None,
    "missing/model.safetensors": None,
    "./org/model": None,
    "/org/model": None,
    "../org/model": None,
    "org/../model": None,
    "org\\model": None,
    "org/model": "hf://org/model",
    "org/model@v1/sub/m.safetensors": "hf://org/model@v1/sub/m.safetensors",
    "org/model/two words.safetensors": "hf://org/model/two words.safetensors",
    "https://huggingface.co/org/model": "hf://org/model",
    "https://huggingface.co/org/model/blob/main/a%20b.safetensors?x=1": "hf://org/model/a b.safetensors",
    "https://hf.co/org/model/resolve/refs%2Fpr%2F1/m.safetensors": "hf://org/model@refs%2Fpr%2F1/m.safetensors",
    "https://huggingface.co/datasets/org/x": "https://huggingface.co/datasets/org/x",
    "https://huggingface.co.example.com/org/model": "https://huggingface.co.example.com/org/model",
    "https://[": "https://[",
    "S3://bucket/m.safetensors": "S3://bucket/m.safetensors",
}


@pytest.mark.parametrize(("given", "address"), PLACES.items())
def test_what_is_named_is_looked_for_here_or_elsewhere(tmp_path, monkeypatch, given, address):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    found = located(given)
    assert found == (Path(given) if address is None else RemoteFile(address))
    assert located(Path(given)) == Path(given)


def test_what_is_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert located("org/model") == Path("org/model")
    assert located("org/other") == Path("org/other"), "there is a folder org here"
    assert located(f"file://{tmp_path}/org") == tmp_path / "org"


def test_secrets_and_states_are_not_shown():
    assert shown("https://me:secret@h:8/a/m.safetensors?X-Amz-Signature=s#f") == "https://h:8/a/m.safetensors"
    assert (
        shown("zip://m.safetensors::https://me:secret@h/a.zip?s=1") == "zip://m.safetensors::https://h/a.zip"
    )
    assert shown(f"hf://org/model@{'0123456789' * 4}/m") == "hf://org/model@01234567/m"
    place = RemoteFile("https://me:secret@h/a/m.safetensors?sig=s")
    assert "s@" not in f"{place} {place!r} {place.sibling('n')} {place.name}"
    assert place.sibling("a b").address == "https://me:secret@h/a/a%20b?sig=s"


def test_names_are_good_for_files():
    assert RemoteFile("hf://org/model@v1").name == "model"
    assert RemoteFile("https://h/a%20b.safetensors?x=/y").name == "a b.safetensors"
    assert RemoteFile("https://h/..%2F..%2Fetc%2Fpasswd").name == "..%252F..%252Fetc%252Fpasswd"


def test_a_place_on_the_hub_has_three_parts():
    assert hub_place(RemoteFile("hf://a/b@refs%2Fpr%2F1/c/d.x")) == HubPlace("a/b", "refs/pr/1", "c/d.x")
    assert hub_place(RemoteFile("hf://a/b/")) == HubPlace("a/b")
    assert hub_place(RemoteFile("hf://spaces/a/b")) is None
