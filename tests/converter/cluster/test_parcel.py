"""Values on their way to another process arrive as they were, in memory of their own."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.converter.cluster.parcel import Parcel
from convert_to_quant.quant.algorithms import LayerStats

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.float64)


def sent(value):
    """A value after a journey: what Ray hands over may only be read."""
    parcel = pickle.loads(pickle.dumps(Parcel.of(value)))
    for buffer in parcel.buffers:
        buffer.flags.writeable = False
    return parcel.opened()


@given(dtype=st.sampled_from(DTYPES), shape=st.lists(st.integers(0, 5), max_size=3), turned=st.booleans())
def test_tensors_arrive_bit_for_bit(dtype, shape, turned):
    tensor = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    tensor = (tensor % 2).bool()[..., 0] if dtype is torch.bool else tensor.view(dtype)[..., 0]
    tensor = tensor.transpose(0, -1) if turned and len(shape) > 1 else tensor
    found = sent({"a": [tensor]})["a"][0]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    whole = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found, tensor))
    assert torch.equal(*whole)


def test_bytes_lie_beside_the_pickle_and_may_be_written():
    weight = torch.arange(1 << 16, dtype=torch.float32)
    stats = LayerStats(samples=weight.view(256, 256), input_scale=0.5)
    assert len(Parcel.of(stats).data) < 2000
    found = sent(stats)
    found.samples.zero_()
    assert weight[-1] == 65535
    assert (found.input_scale, found.channel_max) == (0.5, None)


def test_what_cannot_be_sent_is_no_parcel():
    with pytest.raises(Exception, match="pickle"):
        Parcel.of(lambda: None)
