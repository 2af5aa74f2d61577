"""Tables for terminals: repeated blocks on one line, names whole, and no line wider than asked."""

import pytest
from catalogs import FULL, SMALL, load, names, write_hollow
from hypothesis import given
from hypothesis import strategies as st
from models import block_weights, save

from convert_to_quant.converter.cli.collapse import collapse
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cli.show_plan import plan_lines
from convert_to_quant.converter.cli.table import Table
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quantization import convert_to_int8, plan_int8

FOLDER = FULL if FULL.is_dir() else SMALL


def test_repeated_blocks_are_one_name():
    names = [f"double_blocks.{b}.img_mlp.{i}" for b in range(19) for i in (0, 2)] + ["final.linear"]
    found = [(g.name, len(g.indices)) for g in collapse(names)]
    assert found == [
        ("double_blocks.{0..18}.img_mlp.0", 19),
        ("double_blocks.{0..18}.img_mlp.2", 19),
        ("final.linear", 1),
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["a.0.x", "a.1.x", "a.3.x", "a.5.x", "a.6.x", "a.7.x"], ["a.{0,1,3,5..7}.x"]),
        (["a.0.e.0.w", "a.0.e.1.w", "a.1.e.0.w", "a.1.e.1.w"], ["a.{0,1}.e.{0,1}.w"]),
        (["a.0.e.0.w", "a.0.e.1.w", "a.1.e.0.w"], ["a.{0,1}.e.0.w", "a.0.e.1.w"]),
        (["a.0", "a.1"], ["a.0", "a.1"]),
        (["", ".", "0", "0.0"], ["", ".", "0", "0.0"]),
    ],
)
def test_only_what_is_there_is_joined(given, wanted):
    assert [g.name for g in collapse(given)] == wanted


@given(st.lists(st.from_regex(r"\A[ab0-2.]{0,8}\Z"), max_size=30, unique=True))
def test_every_name_is_in_one_group(names):
    assert sorted(i for g in collapse(names) for i in g.indices) == list(range(len(names)))


WORD = st.text("abc.", min_size=1, max_size=30)


@given(
    st.lists(st.tuples(WORD, st.integers(0, 999), st.lists(WORD, max_size=9).map(" ".join)), max_size=6),
    st.integers(40, 120),
)
def test_a_table_fits_and_breaks_no_name(rows, width):
    table = Table("", ("name", "n", "why"), right=(1,))
    for r in rows:
        table.add(*r)
    lines = table.lines(width)
    words = {w for line in lines for w in line.split()}
    assert all(r[0] in words for r in rows)
    assert all(w in words for r in rows for w in r[2].split())
    longest = max((len(w) for w in words), default=0)
    assert all(len(line) <= max(width, 20 + longest) for line in lines)


@pytest.mark.parametrize("width", [80, 140])
def test_the_plan_of_a_large_model_fits_two_pages(tmp_path, width):
    name = max(names(FOLDER), key=lambda n: len(load(FOLDER, n)[1]))
    report = plan_int8(write_hollow(tmp_path / "m.safetensors", load(FOLDER, name)[1]))
    lines = plan_lines(report, width=width)
    assert len(lines) < (90 if width == 140 else 130)
    every = plan_lines(report, True)
    assert len(every) > len(report.layers)
    shown = {word for line in every for word in line.split()}
    assert [t.name for t in report.layers if t.name not in shown] == []


def test_verbose_lists_every_layer_and_quiet_none(tmp_path, capsys):
    model = save(tmp_path / "m.safetensors", block_weights(hidden=128))
    assert main(["-i", str(model), "--dry-run"]) == 0
    assert "blocks.{0,1}.attn.qkv" in capsys.readouterr().out
    assert main(["-i", str(model), "--dry-run", "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert "blocks.0.attn.qkv" in shown
    assert "blocks.1.attn.qkv" in shown
    assert main(["-i", str(model), "--dry-run", "--quiet"]) == 0
    assert "attn.qkv" not in capsys.readouterr().out


def test_a_printed_report_is_its_summary(tmp_path):
    model = save(tmp_path / "m.safetensors", block_weights(hidden=128))
    plan = plan_int8(model)
    report = convert_to_int8(model, tmp_path / "q.safetensors")
    checked = verify(model, tmp_path / "q.safetensors")
    for r in (plan, report, checked):
        assert str(r) == r.summary()
        assert "\n" not in str(r)
