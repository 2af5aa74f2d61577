"""A header that is built is the one that is parsed, in the order that keeps tensors aligned."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert_to_quant.files.dtypes import BITS
from convert_to_quant.files.header import OutputTensor, build_header, read_header

OUTPUTS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(OUTPUTS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_built_is_what_is_parsed(tmp_path_factory, content, metadata):
    """Every dtype of the format, names and metadata in any script; data where the header says."""
    outputs = [OutputTensor(name, dtype, shape) for name, (dtype, shape) in content.items()]
    raw, offsets, size = build_header(outputs, metadata)
    path = tmp_path_factory.mktemp("h") / "m.safetensors"
    path.write_bytes(raw + b"\0" * (size - len(raw)))
    tensors, found = read_header(path)
    assert found == metadata
    assert {n: (t.dtype, t.shape) for n, t in tensors.items()} == content
    assert {n: t.offset for n, t in tensors.items()} == offsets
    assert list(offsets.values()) == sorted(offsets.values())


def test_every_tensor_is_aligned_whatever_the_order_given():
    """Bytes first would leave floats at odd places, where readers cannot view them."""
    shapes = {"a": ("I8", (3,)), "b": ("F32", (1,)), "c": ("BF16", (5,)), "d": ("F64", ()), "e": ("I8", (2,))}
    outputs = [OutputTensor(name, *what) for name, what in shapes.items()]
    _, offsets, _ = build_header(outputs, {})
    assert list(offsets) == ["d", "b", "c", "a", "e"]
    assert all(offsets[o.name] % o.alignment == 0 for o in outputs)


@pytest.mark.parametrize(("dtype", "alignment"), [("F64", 8), ("BF16", 2), ("I8", 1), ("F4", 1)])
def test_alignment_is_bytes_per_element_and_at_least_one(dtype, alignment):
    assert OutputTensor("x", dtype, (4,)).alignment == alignment
