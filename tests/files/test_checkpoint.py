"""Opening checkpoints: what is refused, and the words for it."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import block_weights, save, save_sharded
from safetensors.torch import load_file

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.formats.errors import CheckpointError, ConversionError


def write_raw(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def spec(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BROKEN = {
    "empty file": (lambda p: p.write_bytes(b""), "is empty"),
    "shorter than its header": (lambda p: write_raw(p, {"a": spec()}, length=10_000), "truncated or not"),
    "not JSON": (lambda p: write_raw(p, b"{nonsense", b"1234"), "the header is not valid"),
    "pickle": (lambda p: p.write_bytes(b"PK\x03\x04" + b"\xff" * 100), "a damaged or cut off archive"),
    "gguf": (lambda p: p.write_bytes(b"GGUF" + b"\xff" * 100), "a GGUF file"),
    "data missing": (lambda p: write_raw(p, {"a": spec()}, b"12"), "truncated inside tensor 'a'"),
    "data left over": (lambda p: write_raw(p, {"a": spec()}, b"12345678"), "4 bytes follow the last tensor"),
    "gap": (lambda p: write_raw(p, {"a": spec(begin=4, end=8)}, b"12345678"), "leave a gap"),
    "overlap": (
        lambda p: write_raw(p, {"a": spec(), "b": spec(begin=2, end=6)}, b"123456"),
        "overlap",
    ),
    "size against shape": (lambda p: write_raw(p, {"a": spec(shape=(2,))}, b"1234"), "takes 8 bytes"),
    "unknown dtype": (lambda p: write_raw(p, {"a": spec("Q7")}, b"1234"), "unknown dtype 'Q7'"),
    "no tensors": (lambda p: write_raw(p, {}), "holds no tensors"),
    "not an object": (lambda p: write_raw(p, b"[1]"), "a JSON object is expected"),
    "nested without end": (lambda p: write_raw(p, b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "other than UTF-8": (lambda p: write_raw(p, "{}".encode("utf-16")), "'utf-8' codec"),
    "half a surrogate pair": (
        lambda p: write_raw(p, rb'{"__metadata__": {"a": "\udc00"}}'),
        "half of a surrogate pair",
    ),
    "one name twice": (lambda p: write_raw(p, b'{"a": 1, "a": 2}'), "'a' is in it twice"),
    "tensor of another kind": (lambda p: write_raw(p, {"a": [1]}), "'a': an object with dtype"),
    "dtype of another kind": (lambda p: write_raw(p, {"a": spec([])}, b"1234"), "unknown dtype"),
    "shape of a float": (
        lambda p: write_raw(p, {"a": spec(shape=(1.0,))}, b"1234"),
        "1.0 is not a whole number",
    ),
    "shape of a bool": (lambda p: write_raw(p, {"a": spec(shape=(True,))}, b"1234"), "True is not a whole"),
    "shape beyond 63 bits": (
        lambda p: write_raw(p, {"a": spec(shape=(0, 1 << 63), end=0)}),
        "9223372036854775808 is not a whole number",
    ),
    "too many dimensions": (lambda p: write_raw(p, {"a": spec(shape=[1] * 65)}, b"1234"), "65 dimensions"),
    "three offsets": (
        lambda p: write_raw(p, {"a": {**spec(), "data_offsets": [0, 4, 4]}}, b"1234"),
        "not 3 numbers",
    ),
    "offset below the data": (
        lambda p: write_raw(p, {"a": spec(begin=-4, end=0)}, b"1234"),
        "-4 is not a whole",
    ),
    "metadata of numbers": (
        lambda p: write_raw(p, {"__metadata__": {"a": 1}, "a": spec()}, b"1234"),
        "the value of 'a' is int, not text",
    ),
    "metadata of another kind": (lambda p: write_raw(p, {"__metadata__": "a"}), "not an object of texts"),
    "name of thousands of dots": (
        lambda p: write_raw(p, {"a." * 5000 + "weight": spec()}, b"1234"),
        "has 10006 characters",
    ),
    "pipe": (os.mkfifo, "is a pipe, not a file"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_with_the_reason(tmp_path, make, message):
    path = tmp_path / "m.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match=message) as e:
        open_checkpoint(path)
    assert str(path) in str(e.value)


def test_missing_paths_and_shards(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)
    index = save_sharded(tmp_path / "transformer", block_weights())
    with pytest.raises(CheckpointError, match=r"did you mean .*transformer"):
        open_checkpoint(tmp_path)
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of its 3 shards are missing"):
        open_checkpoint(index)


def test_an_index_that_promises_too_much_or_is_not_one(tmp_path):
    index = save_sharded(tmp_path, block_weights())
    content = json.loads(index.read_text())
    content["weight_map"]["ghost.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"names 1 tensors .* 'ghost\.weight'"):
        open_checkpoint(index)
    index.write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a/../../m", r"..\\m", r"C:\\m", "", 7, ["a"]]
)
def test_an_index_leads_to_no_file_outside_its_folder(tmp_path, name):
    save(tmp_path / "m.safetensors", block_weights())
    (tmp_path / "sub").mkdir()
    index = tmp_path / "sub" / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    wanted = r"for 'a'; a file in the index's own folder|'a': must be a text"
    with pytest.raises(CheckpointError, match=wanted):
        open_checkpoint(index)


def test_shards_may_be_links_into_a_store_elsewhere(tmp_path):
    """As the caches of model hubs keep them."""
    index = save_sharded(tmp_path / "store", block_weights())
    (tmp_path / "model").mkdir()
    for file in index.parent.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    assert open_checkpoint(tmp_path / "model" / index.name).shapes() == open_checkpoint(index).shapes()


@pytest.mark.parametrize("where", ["/dev/null", "/etc/passwd/m.safetensors", "/tmp/" + "x" * 300, "a\0b"])
def test_places_that_are_no_file_are_refused_by_name(where):
    with pytest.raises(CheckpointError) as e:
        open_checkpoint(where)
    assert where.replace("\0", r"\x00") in str(e.value)
    assert "\n" not in str(e.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save(tmp_path / "a.safetensors", {"x.weight": torch.zeros(2)})
    save(tmp_path / "b.safetensors", {"x.weight": torch.zeros(2)})
    with pytest.raises(
        CheckpointError, match=r"'x\.weight' is in two files, a\.safetensors and b\.safetensors"
    ):
        open_checkpoint(tmp_path)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool]


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_tensors_read_as_the_safetensors_library_reads_them(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("c") / "m.safetensors"
    tensors = {n: torch.randint(0, 2, shape).to(dtype) for n, (dtype, shape) in content.items()}
    save(path, tensors)
    theirs = load_file(str(path))
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == set(theirs)
        for name, value in theirs.items():
            ours = checkpoint.read(name)
            assert ours.dtype == value.dtype
            assert torch.equal(ours, value)


def test_a_file_cut_short_after_it_was_opened(tmp_path):
    path = save(tmp_path / "m.safetensors", {"a.weight": torch.zeros(64, 64)})
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"ends inside tensor 'a\.weight'"):
            checkpoint.read("a.weight")


def test_a_checkpoint_opened_again_reads_by_itself(tmp_path):
    """For another thread: closing the one leaves the other's files open."""
    path = save(tmp_path / "m.safetensors", {"a.weight": torch.arange(4.0)})
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a.weight")
        with checkpoint.reopen() as other:
            assert torch.equal(other.read("a.weight"), torch.arange(4.0))
        assert torch.equal(checkpoint.read("a.weight"), torch.arange(4.0))


def test_the_error_is_a_conversions_and_a_value_error(tmp_path):
    """The converter's commands print the one, programs that load models catch the other."""
    with pytest.raises(ConversionError) as e:
        open_checkpoint(tmp_path / "none.safetensors")
    assert isinstance(e.value, ValueError)
