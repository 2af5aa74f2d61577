"""Tensors put together from the rows of others, where they are read."""

import pytest
import torch
from models import save

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.files.joined import joined
from convert_to_quant.formats.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.arange(100, 108, dtype=torch.float32).reshape(2, 4),
    "even": torch.arange(24, dtype=torch.int16).reshape(4, 6),
    "bias": torch.arange(4, dtype=torch.bfloat16),
    "wide": torch.zeros(2, 5),
    "scalar": torch.tensor(1.0),
}


@pytest.fixture
def checkpoint(tmp_path):
    with open_checkpoint(save(tmp_path / "m.safetensors", TENSORS)) as opened:
        yield opened


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["b", "a", "b"]], ids="+".join)
def test_rows_stand_below_each_other(checkpoint, names):
    info = joined("new", [checkpoint.tensors[n] for n in names])
    want = torch.cat([TENSORS[n] for n in names])
    assert (info.name, info.dtype, info.shape, info.nbytes) == ("new", "F32", tuple(want.shape), want.nbytes)
    assert torch.equal(checkpoint.read_tensor(info), want)


@pytest.mark.parametrize("name", ["even", "bias"])
def test_halves_are_exchanged(checkpoint, name):
    info = joined("new", [checkpoint.tensors[name]], swap=True)
    first, second = TENSORS[name].chunk(2)
    assert torch.equal(checkpoint.read_tensor(info), torch.cat([second, first]))


def test_joining_what_was_joined_is_joining_all(checkpoint):
    pair = joined("pair", [checkpoint.tensors["a"], checkpoint.tensors["b"]])
    info = joined("all", [pair, checkpoint.tensors["a"]])
    assert torch.equal(checkpoint.read_tensor(info), torch.cat([TENSORS[n] for n in "aba"]))


def test_every_range_of_bytes_can_be_read(checkpoint):
    info = joined("new", [checkpoint.tensors["a"], checkpoint.tensors["b"]])
    whole = bytes(torch.cat([TENSORS["a"], TENSORS["b"]]).flatten().view(torch.uint8).tolist())
    for start in range(0, len(whole), 7):
        for stop in range(start + 1, len(whole) + 1, 11):
            buffer = bytearray(stop - start)
            checkpoint.read_into(info, memoryview(buffer), start)
            assert buffer == whole[start:stop]


@pytest.mark.parametrize(
    ("names", "swap"),
    [(["a", "even"], False), (["a", "wide"], False), (["scalar", "scalar"], False), (["a"], True)],
    ids=["dtypes", "columns", "scalars", "odd rows"],
)
def test_what_does_not_fit_together_is_refused_by_name(checkpoint, names, swap):
    with pytest.raises(CheckpointError, match=r"m\.safetensors: new"):
        joined("new", [checkpoint.tensors[n] for n in names], swap)
