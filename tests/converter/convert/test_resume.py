"""What an interrupted conversion left is taken over only as far as it is what was written."""

import itertools
import json
import os
import zlib

import pytest
import torch
from models import save

from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings
from convert_to_quant.files import writer
from convert_to_quant.files.writer import OutputFile
from convert_to_quant.quantization import ConversionError, convert_to_int8

LAYERS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Eight layers of 1.1 MiB in float32, and norms that are kept."""
    g = torch.Generator().manual_seed(0)
    tensors = {f"blocks.{b}.fc.weight": torch.randn(544, 512, generator=g) for b in range(LAYERS)}
    tensors |= {f"blocks.{b}.norm.weight": torch.randn(512, generator=g) for b in range(LAYERS)}
    return save(tmp_path_factory.mktemp("m") / "m.safetensors", tensors)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The bytes of a conversion that was not interrupted."""
    output = tmp_path_factory.mktemp("w") / "q.safetensors"
    convert_to_int8(model, output)
    return output.read_bytes()


def interrupted(source, output, monkeypatch, steps=9):
    """Convert until `steps` steps are recorded; return the .part file and its journal."""
    mark, count = OutputFile.mark, itertools.count(1)

    def stopping(self, key, note):
        mark(self, key, note)
        if next(count) == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "mark", stopping)
        with pytest.raises(KeyboardInterrupt):
            convert_to_int8(source, output)
    return writer.scratch_of(output)


def written_again(source, output, monkeypatch):
    """Convert; return the names of the tensors that were written in this run."""
    write, copy, names = OutputFile.write, OutputFile.copy, []
    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "write", lambda s, n, d: (names.append(n), write(s, n, d))[1])
        patch.setattr(OutputFile, "copy", lambda s, n, *r: (names.append(n), copy(s, n, *r))[1])
        convert_to_int8(source, output)
    return names


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))


def lines_of(journal):
    return journal.read_bytes().split(b"\n")[:-1]


def line(value):
    text = json.dumps(value).encode()
    return b"%08x " % zlib.crc32(text) + text


def test_what_is_whole_is_taken_over(tmp_path, model, whole, monkeypatch):
    output = tmp_path / "q.safetensors"
    _, journal = interrupted(model, output, monkeypatch)
    done = [json.loads(entry.partition(b" ")[2])[0] for entry in lines_of(journal)[1:]]
    assert len(done) == 9
    assert set(written_again(model, output, monkeypatch)).isdisjoint(done)
    assert output.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]


@pytest.mark.parametrize("where", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999], ids=str)
def test_a_changed_byte_is_never_taken_over(tmp_path, model, whole, monkeypatch, where):
    output = tmp_path / "q.safetensors"
    part, _ = interrupted(model, output, monkeypatch)
    flip(part, int(part.stat().st_size * where))
    convert_to_int8(model, output)
    assert output.read_bytes() == whole


def test_every_tensor_taken_over_is_looked_at(tmp_path, model, whole, monkeypatch):
    """One bit in each tensor that is recorded as done, kept ones too: all are written again."""
    output = tmp_path / "q.safetensors"
    part, journal = interrupted(model, output, monkeypatch)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    base = 8 + int.from_bytes(whole[:8], "little")
    done = {n for entry in lines_of(journal)[1:] for n in json.loads(entry.partition(b" ")[2])[2]}
    for name in done:
        begin, end = header[name]["data_offsets"]
        flip(part, base + (begin + end) // 2)
    assert done <= set(written_again(model, output, monkeypatch))
    assert output.read_bytes() == whole


def test_a_part_with_a_hole_is_never_taken_over(tmp_path, model, whole, monkeypatch):
    output = tmp_path / "q.safetensors"
    part, _ = interrupted(model, output, monkeypatch)
    size = part.stat().st_size
    os.truncate(part, size // 3)
    os.truncate(part, size)
    convert_to_int8(model, output)
    assert output.read_bytes() == whole


def spoil(journal, kind):
    lines = lines_of(journal)
    key, note, digests = json.loads(lines[-1].partition(b" ")[2])
    if kind == "garbage":
        journal.write_bytes(b"\xff\x00garbage\n" * 3)
    elif kind == "empty":
        journal.write_bytes(b"")
    elif kind == "cut":
        journal.write_bytes(journal.read_bytes()[:-7])
    elif kind == "a bit":
        flip(journal, journal.stat().st_size - 20)
    else:
        identity = json.loads(lines[0].partition(b" ")[2])[0]
        other = {
            "another version": [[{**identity, "version": "0.0.0"}], *[json.loads(x[9:]) for x in lines[1:]]],
            "another start": [[{**identity, "boot": "x"}], *[json.loads(x[9:]) for x in lines[1:]]],
            "bare values": [
                [identity],
                1,
                None,
                "x",
                [],
                {},
                [1, 2, 3],
                ["a", None, []],
                ["a", None, {"b": 1}],
            ],
            "unknown names": [[identity], ["nothing", None, {"nothing": "00000000"}]],
            "no digests": [[identity], [key, note, {}]],
            "copied, it says": [[identity], [key, note, dict.fromkeys(digests, "")]],
            "another note": [[identity], [key, {"sqnr_db": "high", "zeroed": "", "note": None}, digests]],
            "deep": [[identity], [key, json.loads("[" * 500 + "]" * 500), digests]],
        }[kind]
        journal.write_bytes(b"".join(line(value) + b"\n" for value in other))


SPOILED = [
    "garbage", "empty", "cut", "a bit", "another version", "another start", "bare values", "unknown names",
    "no digests", "copied, it says", "another note", "deep",
]  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_journal_costs_work_and_nothing_else(tmp_path, model, whole, monkeypatch, kind):
    output = tmp_path / "q.safetensors"
    part, journal = interrupted(model, output, monkeypatch, steps=2)
    spoil(journal, kind)
    part.write_bytes(b"\x55" * part.stat().st_size)
    if kind == "empty":
        with pytest.raises(ConversionError, match="is there without a journal"):
            convert_to_int8(model, output)
        part.unlink()
    convert_to_int8(model, output)
    assert output.read_bytes() == whole


def during(monkeypatch, step, action):
    """Run `action` once, when `step` steps are recorded."""
    mark, count = OutputFile.mark, itertools.count(1)

    def acting(self, key, note):
        mark(self, key, note)
        if next(count) == step:
            action()

    monkeypatch.setattr(OutputFile, "mark", acting)


@pytest.mark.parametrize("kind", ["shorter", "empty", "longer", "gone", "another"])
def test_a_part_that_others_change_meanwhile_is_noticed(tmp_path, model, monkeypatch, kind):
    output = tmp_path / "q.safetensors"
    part, _ = writer.scratch_of(output)

    def change():
        size = part.stat().st_size
        if kind in ("shorter", "empty", "longer"):
            os.truncate(part, {"shorter": size - 1, "empty": 0, "longer": size + 1}[kind])
        else:
            part.unlink()
        if kind == "another":
            part.write_bytes(b"\0" * size)

    during(monkeypatch, 5, change)
    with pytest.raises(ConversionError, match=r"was (cut short|taken away) while it was written; run again"):
        convert_to_int8(model, output)
    assert not output.exists()


def in_place(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")


def in_place_unseen(path):
    before = path.stat()
    in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_another(path):
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def away(path):
    path.unlink()


@pytest.mark.parametrize("change", [in_place, in_place_unseen, by_another, away], ids=lambda c: c.__name__)
@pytest.mark.parametrize("command", ["convert", "edit"])
def test_an_input_that_changes_meanwhile_is_noticed(tmp_path, model, monkeypatch, change, command):
    source = tmp_path / "m.safetensors"
    source.write_bytes(model.read_bytes())
    output = tmp_path / "q.safetensors"
    if command == "edit":
        source = tmp_path / "int8.safetensors"
        convert_to_int8(model, source)
    during(monkeypatch, 5, lambda: change(source))
    with pytest.raises(ConversionError, match="was changed, replaced or removed while it was read"):
        convert_to_int8(source, output) if command == "convert" else edit(
            EditSettings(str(source), str(output))
        )
    assert not any(p.name.startswith("q.") for p in tmp_path.iterdir())


def test_an_input_replaced_between_two_runs_is_read_again(tmp_path, model, whole, monkeypatch):
    """Of the same size and time: only its place on the disk tells."""
    source, output = tmp_path / "m.safetensors", tmp_path / "q.safetensors"
    g = torch.Generator().manual_seed(1)
    other = {f"blocks.{b}.fc.weight": torch.randn(544, 512, generator=g) for b in range(LAYERS)}
    other |= {f"blocks.{b}.norm.weight": torch.randn(512, generator=g) for b in range(LAYERS)}
    save(source, other)
    interrupted(source, output, monkeypatch)
    before = source.stat()
    (tmp_path / "new").write_bytes(model.read_bytes())
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").replace(source)
    convert_to_int8(source, output)
    assert output.read_bytes() == whole
