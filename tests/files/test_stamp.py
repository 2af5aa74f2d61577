"""What tells a file from a changed one."""

import os

import pytest

from convert_to_quant.files.stamp import fingerprint, require_unchanged, stamp
from convert_to_quant.formats.errors import CheckpointError


def rewrite(path, before):
    path.write_bytes(b"B" * before.size)


def rewrite_and_set_the_time_back(path, before):
    rewrite(path, before)
    os.utime(path, ns=(before.mtime_ns, before.mtime_ns))


def replace(path, before):
    other = path.with_name("other")
    other.write_bytes(b"B" * before.size)
    os.utime(other, ns=(before.mtime_ns, before.mtime_ns))
    other.replace(path)


def replace_and_put_back(path, before):
    kept = path.rename(path.with_name("kept"))
    path.write_bytes(b"B" * before.size)
    kept.replace(path)


def remove(path, before):
    path.unlink()


CHANGES = [rewrite, rewrite_and_set_the_time_back, replace, replace_and_put_back, remove]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_every_change_is_noticed(tmp_path, change):
    path = tmp_path / "m"
    path.write_bytes(b"A" * 100)
    os.utime(path, ns=(10**18, 10**18))
    before = stamp(path)
    require_unchanged({path: before})
    wait_for_a_tick(tmp_path / "clock")
    change(path, before)
    with pytest.raises(CheckpointError, match=r"m: was changed, replaced or removed while it was read"):
        require_unchanged({path: before})


def wait_for_a_tick(path):
    """Wait until the file system's clock has moved: what happens within one tick of it cannot be seen."""
    path.write_bytes(b"")
    first = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == first:
        path.write_bytes(b"1")


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_a_fingerprint_is_of_contents_not_of_places(tmp_path, size):
    data = bytes(i * 7 % 251 for i in range(min(size, 5003))) * (size // 5003 + 1)
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(data[:size])
    b.write_bytes(data[:size])
    assert fingerprint(a) == fingerprint(b)
    b.write_bytes(data[:size] + b"\0")
    assert fingerprint(a) != fingerprint(b)
    if size:
        b.write_bytes(bytes(x ^ 1 for x in data[:size]))
        assert fingerprint(a) != fingerprint(b)
