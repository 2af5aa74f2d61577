"""Prompts of a file, and the built-in list."""

import pytest

from convert_to_quant.converter.recording.prompts import read_prompts, spread
from convert_to_quant.formats.errors import ConversionError


def test_the_built_in_list_is_many_kinds_of_text():
    found = read_prompts(None)
    assert len(found) == len(set(found)) >= 64
    assert sum(len(p) for p in found) > 6000
    some = spread(found, 16)
    assert len(some) == 16
    assert sum(not p.isascii() for p in some) == 2, "an eighth is in other languages than English"
    assert some[0] == found[0]
    assert found.index(some[-1]) >= len(found) * 15 // 16


def test_a_count_above_the_list_takes_all():
    assert spread(["a", "b"], 5) == ["a", "b"]
    assert spread(["a", "b"], None) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no prompt"), (b"\n \n", "holds no prompt"), (b"\xff\xfe\x00a", "no UTF-8 text")],
    ids=["empty", "blank", "UTF-16"],
)
def test_a_file_without_prompts_is_refused(content, message, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_prompts(tmp_path / "p.txt")


def test_blank_lines_and_a_byte_order_mark_are_no_prompts(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffeins\r\n\r\n zwei \n".encode())
    assert read_prompts(tmp_path / "p.txt") == ["eins", "zwei"]
