"""Schemas: what they take, and the path in what they refuse."""

import re

import pytest

from convert_to_quant.files.regular import parse_json
from convert_to_quant.files.schema import listing, number, optional, record, table, text, truth, whole
from convert_to_quant.formats.errors import CheckpointError

ENTRY = record(
    {"n": whole(), "f": number(above=0), "t": text(), "b": truth(), "l": listing(number(least=0)),
     "o": optional(text())},
    required=("n",),
)  # fmt: skip


def test_what_fits_is_returned():
    given = {"n": 3, "f": 2, "t": "x", "b": False, "l": [0, 1.5], "o": None}
    assert ENTRY(given, "w") == given
    assert record({"a": text()}, others=True)({"a": "1", "z": 2}, "w") == {"a": "1"}
    assert table(whole())({"x": 1}, "w") == {"x": 1}
    assert whole(None, "auto")("auto", "w") == "auto"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "w: must be a JSON object, not []"),
        ({}, "w: has no 'n'"),
        ({"n": 1.0}, "w: n: must be a whole number, not 1.0"),
        ({"n": True}, "must be a whole number, not True"),
        ({"n": "1"}, "must be a whole number, not '1'"),
        ({"n": 1, "f": 0}, "w: f: must be a finite number above 0, not 0"),
        ({"n": 1, "f": float("nan")}, "finite number above 0, not nan"),
        ({"n": 1, "f": float("inf")}, "not inf"),
        ({"n": 1, "f": 10**400}, "must be a finite number"),
        ({"n": 1, "f": True}, "not True"),
        ({"n": 1, "t": None}, "w: t: must be a text, not None"),
        ({"n": 1, "b": 0}, "must be true or false, not 0"),
        ({"n": 1, "l": [1, -1]}, "w: l: number 2: must be a finite number of at least 0, not -1"),
        ({"n": 1, "l": {}}, "must be a list"),
        ({"n": 1, "tt": 1}, "there is no field 'tt'; did you mean 't'"),
        ({"n": 1, "zzzzzz": 1}, "there is no field 'zzzzzz'; the names are: n, f"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(given, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        ENTRY(given, "w")


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [[[[0] * 9] * 9] * 9] * 9, 10**4000], ids=["text", "lists", "number"]
)
def test_a_refusal_is_short_whatever_was_given(value):
    with pytest.raises(CheckpointError) as e:
        text()(value, "w") if not isinstance(value, str) else whole()(value, "w")
    assert len(str(e.value)) < 300


@pytest.mark.parametrize(
    "bomb", ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000, '"\\ud800"', "NaN"[:2], '{"a"']
)
def test_bombs_are_refused(bomb):
    with pytest.raises(CheckpointError, match=r"^w: "):
        parse_json(bomb, "w")
