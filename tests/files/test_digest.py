"""The digest of written bytes: the same however they come, another for every accident."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert_to_quant.files.digest import Digest, digest_of

SIZE = (1 << 20) * 2 + 12_345


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, SIZE), max_size=8))
def test_pieces_make_no_difference(data, cuts):
    digest, start = Digest(), 0
    for cut in [*sorted(cuts), SIZE]:
        digest.update(data[start:cut].data)
        start = cut
    assert digest.hexdigest() == digest_of(data.data)


@settings(max_examples=40)
@given(at=st.integers(0, SIZE - 1), bit=st.integers(0, 7))
def test_one_bit_makes_another(data, at, bit):
    other = data.copy()
    other[at] ^= 1 << bit
    assert digest_of(other.data) != digest_of(data.data)


def test_what_happens_to_files_makes_another(data):
    words = data[: 1 << 20].view(np.uint64)
    swapped, rows = words.copy(), words.reshape(-1, 512).copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    rows[[3, 4]] = rows[[4, 3]]
    accidents = {
        "cut": data[:-1],
        "longer": np.append(data, np.uint8(0)),
        "shifted": np.roll(data, 1),
        "a page of zeros": np.concatenate([data[:4096] * 0, data[4096:]]),
        "two words swapped": np.concatenate([swapped.view(np.uint8), data[1 << 20 :]]),
        "two rows swapped": np.concatenate([rows.reshape(-1).view(np.uint8), data[1 << 20 :]]),
        "two pieces swapped": np.concatenate([data[1 << 20 : 2 << 20], data[: 1 << 20], data[2 << 20 :]]),
    }
    made = {name: digest_of(np.ascontiguousarray(d).data) for name, d in accidents.items()}
    assert len({*made.values(), digest_of(data.data)}) == len(made) + 1
