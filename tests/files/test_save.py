"""Writing whole files: what the safetensors library reads back, and what a failure leaves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from convert_to_quant.files.atomic import new_file
from convert_to_quant.files.save import save_tensors
from convert_to_quant.formats.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_the_safetensors_library_reads_what_is_written(tmp_path_factory, content, metadata):
    path = tmp_path_factory.mktemp("s") / "m.safetensors"
    tensors = {n: torch.randint(0, 2, shape).to(dtype) for n, (dtype, shape) in content.items()}
    assert save_tensors(path, tensors, metadata) == path
    with safe_open(path, "pt") as f:
        assert (f.metadata() or {}) == metadata
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].float(), value.float())


def test_views_are_written_as_what_they_show(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    save_tensors(tmp_path / "m.safetensors", {"t": whole.T, "row": whole[1], "one": whole[2, 3]})
    found = load_file(tmp_path / "m.safetensors")
    assert torch.equal(found["t"], whole.T)
    assert torch.equal(found["row"], whole[1])
    assert found["one"].shape == ()


def test_a_dtype_that_the_format_lacks_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"odd: torch.complex64 has no safetensors type"):
        save_tensors(tmp_path / "m.safetensors", {"odd": torch.zeros(2, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def test_a_file_whose_writing_fails_is_what_it_was(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(TypeError, match="bytes-like"), new_file(path) as f:
        f.writelines([b"half", "of it"])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with new_file(path) as f:
        f.write(b"after")
        assert path.read_text() == "before", "the name is given at the end"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
