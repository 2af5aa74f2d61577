"""Sizes as people type them."""

import pytest

from convert_to_quant.converter.options.size import shown, size_in_bytes, target_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8gb", 8 * 10**9),
        ("8 GB", 8 * 10**9),
        ("8G", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("7.5GiB", 15 * 2**29),
        ("900MB", 900 * 10**6),
        ("512kib", 512 * 2**10),
        ("123456789", 123456789),
        ("17b", 17),
        (1500, 1500),
    ],
)
def test_bytes(text, size):
    assert size_in_bytes(target_size(text), 1) == size
    assert target_size(target_size(text)) == target_size(text)


@pytest.mark.parametrize(("text", "size"), [("60%", 600), ("60 %", 600), ("12.5%", 125), ("100%", 1000)])
def test_shares_of_the_input(text, size):
    assert size_in_bytes(target_size(text), 1000) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1", "8 gigs", "1e9", "nan", "inf", "0", "0%", "101%", "8GB8", "1_000", "٣", "9" * 40, "0.1"],
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"size|share"):
        target_size(text)


def test_shown():
    assert [shown(n) for n in (8 * 10**9, 954_300_000, 1200, 7)] == [
        "8.00 GB",
        "954.3 MB",
        "1.2 kB",
        "7 bytes",
    ]
