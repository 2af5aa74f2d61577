"""The one table of dtypes, against torch."""

import pytest
import torch

from convert_to_quant.files.dtypes import BITS, dtype_name, nbytes, torch_dtype


def test_names_and_torch_dtypes_lead_to_each_other():
    known = {name: dtype for name in BITS if (dtype := torch_dtype(name)) is not None}
    assert {dtype_name(dtype): dtype for dtype in known.values()} == known
    assert all(dtype.itemsize * 8 == BITS[name] for name, dtype in known.items())


def test_what_one_side_lacks_is_none():
    assert torch_dtype("F4") is None
    assert torch_dtype("Q7") is None
    assert dtype_name(torch.complex64) is None


def test_sizes_round_up_to_whole_bytes():
    assert nbytes("F4", (3,)) == 2
    assert nbytes("F6_E2M3", (4,)) == 3
    assert nbytes("F32", ()) == 4
    with pytest.raises(KeyError):
        nbytes("Q7", (1,))
