"""``--push-to``: a result and its card on a hub of the test's own, uploaded by huggingface_hub."""

import re

import pytest
from fake_hub import TOKEN, fake_hub
from models import block_weights, save

from convert_to_quant.converter.cli.main import main


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save(tmp_path / "m.safetensors", block_weights()).read_bytes()
    with fake_hub(monkeypatch, {"org/base": {"m.safetensors": model}}) as running:
        yield running


def test_a_result_is_uploaded_with_its_card(hub, tmp_path, capfd):
    arguments = ["-o", str(tmp_path / "q.safetensors"), "--extract-lora", "4", "--push-to", "me/new"]
    assert main(["-i", "org/base", *arguments]) == 0
    told = capfd.readouterr()
    assert "uploaded: " in told.out
    assert "the license in its README.md is for you to fill in" in told.err
    there = hub.repositories["me/new"]
    assert hub.private["me/new"], "who makes it public has read the card"
    for name in ("q.safetensors", *(n for n in there if "lora" in n or "error" in n)):
        assert there[name] == (tmp_path / name).read_bytes()
    assert len(there) == 3
    card = there["README.md"].decode()
    assert card.startswith("---\n# license: ")
    assert 'base_model: "org/base"\nbase_model_relation: quantized\n' in card
    assert "ctq -i hf://org/base -o q.safetensors --extract-lora 4\n" in card
    assert re.search(r"\| `blocks.\d.\S+` \| \d\d\.\d \|", card)
    assert "6 layers in INT8" in card
    assert TOKEN not in card + told.out + told.err
    assert str(tmp_path) not in card


def test_a_card_that_is_there_stays(hub, capfd):
    hub.repositories["me/old"] = {"README.md": b"mine"}
    assert main(["-i", "m.safetensors", "-o", "q.safetensors", "--push-to", "me/old", "--quiet"]) == 0
    assert hub.repositories["me/old"].keys() == {"README.md", "q.safetensors"}
    assert hub.repositories["me/old"]["README.md"] == b"mine"
    assert "has a README.md, which stays as it is" in capfd.readouterr().err


def test_an_upload_that_failed_is_made_up_for(hub, tmp_path, capfd):
    hub.refused = {"/api/models/me/new/commit/main": 403}
    arguments = ["-i", "m.safetensors", "-o", "q.safetensors", "--push-to", "me/new", "--quiet"]
    assert main(arguments) == 1
    assert "does not let this login write there (HTTP 403)" in capfd.readouterr().err
    written = (tmp_path / "q.safetensors").stat().st_mtime_ns
    hub.refused = {}
    assert main(arguments) == 0
    assert (tmp_path / "q.safetensors").stat().st_mtime_ns == written, "nothing is converted again"
    assert "q.safetensors" in hub.repositories["me/new"]


def test_what_hinders_an_upload_is_told_before_the_work(hub, tmp_path, monkeypatch, capfd):
    from huggingface_hub import constants

    arguments = ["-i", "m.safetensors", "-o", "q.safetensors", "--push-to", "me/new"]
    assert main([*arguments, "--dry-run"]) == 1
    assert main([*arguments, "-i", "n.safetensors"]) == 1
    hub.refused = {"/api/whoami-v2": 401}
    assert main(arguments) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(arguments) == 1
    told = capfd.readouterr().err
    for message in (
        "a dry run makes none",
        "uploads one model",
        "does not let this login",
        "HF_HUB_OFFLINE",
    ):
        assert message in told
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    with pytest.raises(SystemExit):
        main(["-i", "m.safetensors", "--push-to", "https://huggingface.co/me/new"])
    assert "must be ORG/NAME" in capfd.readouterr().err


def test_names_in_a_card_are_no_markup(hub, tmp_path):
    tensors = block_weights()
    odd = {n.replace("blocks.0", "blocks.0.`|<b>x</b>\n# y"): t for n, t in tensors.items()}
    save(tmp_path / "<b>.safetensors", odd)
    assert main(["-i", "<b>.safetensors", "-o", "a*b.safetensors", "--push-to", "me/new", "--quiet"]) == 0
    card = hub.repositories["me/new"]["README.md"].decode()
    assert "\n# y" not in card
    assert "# a\\*b" in card
