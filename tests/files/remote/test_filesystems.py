"""Checkpoints in fsspec's own file systems."""

import zipfile

import fsspec
import pytest
from models import block_weights, save, save_sharded

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.files.remote.address import RemoteFile
from convert_to_quant.files.remote.filesystems import FsspecSource
from convert_to_quant.formats.errors import CheckpointError


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_file_a_folder_and_an_index(tmp_path, memory):
    tensors = block_weights()
    memory.put(str(save(tmp_path / "m.safetensors", tensors)), "/one/m.safetensors")
    for file in save_sharded(tmp_path / "shards", tensors).parent.iterdir():
        memory.put(str(file), f"/shards/{file.name}")
    for place in ("one/m.safetensors", "one", "shards", "shards/model.safetensors.index.json"):
        with open_checkpoint(f"memory://{place}") as found:
            assert {n: found.read(n).equal(t) for n, t in tensors.items()} == dict.fromkeys(tensors, True)
            assert found.nbytes > 1_000_000
    with pytest.raises(CheckpointError, match=r"memory://none.*no such file"):
        open_checkpoint("memory://none/m.safetensors")
    memory.put(str(tmp_path / "m.safetensors"), "/one/n.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints; name one of: memory://one/m\.safeten"):
        open_checkpoint("memory://one")


def test_a_file_within_an_archive(tmp_path):
    tensors = block_weights()
    save(tmp_path / "m.safetensors", tensors)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "m.safetensors", "m.safetensors")
    with open_checkpoint(f"zip://m.safetensors::file://{tmp_path}/a.zip") as found:
        assert found.read("final_layer.weight").equal(tensors["final_layer.weight"])


def test_a_change_is_seen(memory):
    memory.pipe_file("/m", bytes(100))
    source = FsspecSource(RemoteFile("memory://m"))
    assert source.read(10, 10) == bytes(10)
    memory.pipe_file("/m", b"1" * 100)
    with pytest.raises(CheckpointError, match="was changed, replaced or removed"):
        source.read(10, 10)


def test_failures_that_pass_are_waited_out(memory, monkeypatch):
    memory.pipe_file("/m", b"1" * 100)
    source = FsspecSource(RemoteFile("memory://m"))
    answers = [ConnectionError("at https://host/m?sig=SIGNED"), b"", b"11", b"1" * 8]

    def cat_file(path: str, start: int, end: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(source._system, "cat_file", cat_file, raising=False)
    assert source.read(0, 10) == b"1" * 10
    answers += [ConnectionError("at https://host/m?sig=SIGNED")] * 6
    with pytest.raises(CheckpointError, match="ConnectionError: at; given up after 6 tries"):
        source.read(0, 10)
