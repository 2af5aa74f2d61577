"""What is wrong with one row, one scale, one bias or one tensor fails a verification, in every format."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from format_cases import WRITTEN
from models import block_weights, save
from quantized import LAYER, Tensors, load, spoil

from convert_to_quant import convert_to_int8
from convert_to_quant.converter.stored.record import KEY
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration

HIDDEN = 128
WEIGHT, BIAS = f"{LAYER}.weight", f"{LAYER}.bias"

CALIBRATED = {
    "quip": {},
    "ldlq": {"convrot": False},
    "block ldlq": {"optimizer": "ldlq", "scaling_mode": "block", "block_size": 64},
    "learned": {"optimizer": "radam", "num_iter": 5},
    "int4 quip": {"format": "int4"},
    "w4a8 quip": {"format": "w4a8"},
    "nvfp4 ldlq": {"format": "nvfp4", "optimizer": "ldlq"},
    "all extras": {"smoothquant": True, "static_activations": True, "bias_correction": True},
    "bias": {"simple": True, "bias_correction": True},
}
FORMATS: dict[str, dict] = {c.id: dict(c.options or {}) for c in WRITTEN}


class NotThere(Exception):
    """A file has not what an attack changes."""


def _calibration(folder: Path, tensors: Tensors) -> str:
    """Correlated inputs with a mean for every layer of a model."""
    g, records = torch.Generator().manual_seed(4), {}
    for name, w in tensors.items():
        if name.startswith("blocks.") and w.dim() == 2:
            k = w.shape[1]
            x = torch.randn(300, k, generator=g) @ (torch.randn(k, k, generator=g) / k**0.5) + 0.2
            records[name.removesuffix(".weight")] = LayerStats(
                x.bfloat16(), x.abs().amax(0), x.mean(0), float(x.abs().max() / 127)
            )
    return str(save_calibration(folder / "inputs.safetensors", records))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        tmp_path_factory.mktemp("attacks") / "original.safetensors",
        block_weights(hidden=HIDDEN),
        {"keep": "me"},
    )


@pytest.fixture(scope="module")
def made(original: Path) -> Callable[[str], Path]:
    """The file of a kind of conversion, made once."""
    inputs = _calibration(original.parent, load(original)[0])

    def make(kind: str) -> Path:
        path = original.with_name(f"{kind.replace(' ', '_')}.safetensors")
        if not path.exists():
            calibrated = {"calibration_data": inputs, **CALIBRATED.get(kind, {})}
            convert_to_int8(original, path, **FORMATS.get(kind, calibrated))
        return path

    return make


KINDS = [*FORMATS, *CALIBRATED]


def _bytes(w: torch.Tensor) -> torch.Tensor:
    return w.view(torch.int8)


def _swap_rows(t: Tensors) -> None:
    _bytes(t[WEIGHT])[[3, 9]] = _bytes(t[WEIGHT])[[9, 3]]


def _shift_some_rows(t: Tensors) -> None:
    _bytes(t[WEIGHT])[20:60] = _bytes(t[WEIGHT])[20:60].roll(1, 0)


def _random_last_row(t: Tensors) -> None:
    w = _bytes(t[WEIGHT])
    w[-1] = torch.randint(
        -100, 100, w[-1].shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1)
    )


def _swap_columns(t: Tensors) -> None:
    _bytes(t[WEIGHT])[:, [1, 7]] = _bytes(t[WEIGHT])[:, [7, 1]]


def _change_scales(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Tensors], None]:
    """Change the scales of the weight that float32 holds, flat and in place."""

    def attack(t: Tensors) -> None:
        names = [n for n in t if n.startswith(f"{LAYER}.weight_") and t[n].dtype == torch.float32]
        if not names:
            raise NotThere
        before = t[names[0]].clone()
        change(t[names[0]].view(-1))
        if torch.equal(before, t[names[0]]):
            raise NotThere

    return attack


def _one(factor: float) -> Callable[[Tensors], None]:
    return _change_scales(lambda s: s[s.numel() // 2 : s.numel() // 2 + 1].mul_(factor))


def _two_swapped(s: torch.Tensor) -> None:
    if s.numel() > 1:
        low, high = int(s.argmin()), int(s.argmax())
        s[low], s[high] = s[high].clone(), s[low].clone()


EVERYWHERE: dict[str, Callable[[Tensors], None]] = {
    "rows swapped": _swap_rows,
    "rows shifted": _shift_some_rows,
    "last row random": _random_last_row,
    "columns swapped": _swap_columns,
    "scale 0": _one(0.0),
    "scale x 1.2": _one(1.2),
    "scale x 0.8": _one(0.8),
    "scale NaN": _one(float("nan")),
    "scale infinite": _one(float("inf")),
    "scale negative": _one(-1.0),
    "scales swapped": _change_scales(_two_swapped),
    "scales reversed": _change_scales(lambda s: s.copy_(s.flip(0))),
    "all scales x 1.2": _change_scales(lambda s: s.mul_(1.2)),
    "bias NaN": lambda t: t[BIAS][5:6].fill_(float("nan")),
    "bias zero": lambda t: t[BIAS].zero_(),
    "bias noise": lambda t: t[BIAS].copy_(
        torch.randn(3 * HIDDEN, generator=torch.Generator().manual_seed(1))
    ),
    "bias cast": lambda t: t.update({BIAS: t[BIAS].float()}),
    "kept tensor cast": lambda t: t.update({"final_layer.weight": t["final_layer.weight"].half()}),
    "extra tensor": lambda t: t.update({"extra.weight": torch.ones(2, 2)}),
    "extra scale": lambda t: t.update({"final_layer.weight_scale": torch.ones(64, 1)}),
    "extra layers": lambda t: t.update(
        {
            n.replace("blocks.1.", "blocks.2."): x.clone()
            for n, x in list(t.items())
            if n.startswith("blocks.1.")
        }
    ),
}


def _missed(original: Path, honest: Path, bad: Path, told: bool, attacks: Iterable[str]) -> list[str]:
    """The attacks that a verification of `honest` so changed lets pass."""
    missed = []
    for name in attacks:

        def change(
            t: Tensors, m: dict[str, str], attack: Callable[[Tensors], None] = EVERYWHERE[name]
        ) -> None:
            if not told:
                m.pop(KEY, None)
            attack(t)

        try:
            spoil(honest, bad, change)
        except NotThere:
            continue
        if verify(original, bad).ok:
            missed.append(name)
    return missed


@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_fails(original, made, tmp_path, kind):
    """One test for all attacks on a kind of file: the honest one passes, each of the others does not."""
    honest = made(kind)
    assert verify(original, honest).ok
    assert _missed(original, honest, tmp_path / "bad.safetensors", False, EVERYWHERE) == []


@pytest.mark.parametrize("kind", CALIBRATED)
def test_attacks_on_a_file_with_its_record_fail(original, made, tmp_path, kind):
    some = ("rows swapped", "scale x 1.2", "bias noise", "kept tensor cast", "extra tensor")
    assert _missed(original, made(kind), tmp_path / "bad.safetensors", True, some) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, 0.0, -1.0], ids=str)
@pytest.mark.parametrize("kind", ["quip", "all extras"])
def test_an_impossible_input_scale_fails(original, made, tmp_path, kind, value):
    def change(t, m):
        m.pop(KEY, None)
        t[f"{LAYER}.input_scale"] = torch.tensor(value)

    report = verify(original, spoil(made(kind), tmp_path / "bad.safetensors", change))
    assert "input_scale" in next(r.fault for r in report.layers if r.name == LAYER)


@pytest.mark.parametrize("name", ["input_scale", "pre_quant_scale"])
def test_a_scale_that_the_record_does_not_know_fails(original, made, tmp_path, name):
    def change(t, m):
        t[f"{LAYER}.{name}"] = torch.tensor(0.01) if name == "input_scale" else torch.ones(HIDDEN)

    report = verify(original, spoil(made("quip"), tmp_path / "bad.safetensors", change))
    assert "of which the file's record says nothing" in report.faults[0].fault


def test_what_the_record_says_is_told_and_not_a_fault(original, made):
    report = verify(original, made("all extras"))
    assert report.ok
    assert {p.kind for p in report.problems} == {"bias corrected", "smoothed"}
    assert any("quip, static input scale, smoothed" in n and "6 layers" in n for n in report.notes)


def test_a_file_of_another_maker_is_judged_strictly(original, made, tmp_path):
    """The same file without its record: the corrected bias is then damage, the rounding only unexplained."""
    bare = spoil(made("all extras"), tmp_path / "bare.safetensors", lambda t, m: m.pop(KEY))
    report = verify(original, bare)
    assert not report.ok
    assert {p.where for p in report.violations} == {f"blocks.{b}.attn.qkv.bias" for b in range(2)}
    assert not report.faults
    assert any("nothing in the file says how they were made" in n for n in report.notes)


def test_one_code_of_a_calibrated_layer_changed_after_writing_fails(original, made, tmp_path):
    def change(t, m):
        t[WEIGHT][11, 13] ^= 1

    report = verify(original, spoil(made("quip"), tmp_path / "bad.safetensors", change))
    assert "not those that were written (quip)" in report.faults[0].fault


def test_a_merged_lora_is_told_and_checked_by_its_digest(original, tmp_path):
    g = torch.Generator().manual_seed(3)
    lora = {f"{LAYER}.lora_up.weight": torch.randn(3 * HIDDEN, 4, generator=g) * 0.05}
    lora[f"{LAYER}.lora_down.weight"] = torch.randn(4, HIDDEN, generator=g) * 0.05
    merged = tmp_path / "merged.safetensors"
    convert_to_int8(original, merged, merge_lora_path=str(save(tmp_path / "lora.safetensors", lora)))
    report = verify(original, merged)
    assert report.ok
    assert any("merged 1 LoRA" in n for n in report.notes)
    assert not verify(original, spoil(merged, tmp_path / "bad.safetensors", lambda t, m: _swap_rows(t))).ok


def test_a_cast_that_was_asked_for_is_told(original, tmp_path):
    out = tmp_path / "cast.safetensors"
    convert_to_int8(original, out, exclude_layers="fc2", custom_layers="final_layer", custom_type="fp16")
    report = verify(original, out)
    assert report.ok
    assert [p.kind for p in report.problems] == ["cast to F16"]


def test_a_layer_made_float_again_is_told(original, made, tmp_path):
    from convert_to_quant.converter.edit.run import edit
    from convert_to_quant.converter.edit.settings import EditSettings

    for kind in ("quip", *list(FORMATS)[:1]):
        out = tmp_path / f"{kind.replace(' ', '')}.safetensors"
        edit(EditSettings(str(made(kind)), str(out), dequantize="attn.qkv"))
        report = verify(original, out)
        assert report.ok
        assert {p.kind for p in report.problems} == {"float again"}
        flagged = tmp_path / f"flagged-{out.name}"
        edit(EditSettings(str(out), str(flagged), add_keys={"full_precision_matrix_mult": True}))
        assert verify(original, flagged).ok


@pytest.mark.parametrize("told", [True, False], ids=["with its record", "without a record"])
@pytest.mark.parametrize("rows", [1, 3, 10, 40])
def test_calibrated_rows_beside_rows_of_zeros_are_no_fault(tmp_path, rows, told):
    """A row of zeros looks rounded to nearest whatever was done; a few others may by chance."""
    tensors = {}
    for b in range(2):
        w = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(b)) * 0.05
        w[::2] = 0 if rows > 1 else w[::2]
        tensors[f"blocks.{b}.attn.to_q.weight"] = w
        tensors[f"blocks.{b}.attn.to_out.0.weight"] = w.repeat(512 // rows, 1)
    model = save(tmp_path / "m.safetensors", tensors)
    out, bare = tmp_path / "out.safetensors", tmp_path / "bare.safetensors"
    convert_to_int8(model, out, calibration_data=_calibration(tmp_path, tensors), preset="none")
    assert KEY in load(out)[1]
    file = out if told else spoil(out, bare, lambda t, m: m.pop(KEY))
    assert not verify(model, file).faults


@pytest.mark.parametrize("form", ["fp8", "mxfp8", "nvfp4"])
def test_feedback_onto_weak_inputs_beside_strong_ones_is_no_fault(tmp_path, form):
    """In a weight that is not rotated a few columns take over the errors of the others: the record says who
    did it, and its digest that nothing else did."""
    g, tensors, records = torch.Generator().manual_seed(5), {}, {}
    for b in range(2):
        x = torch.randn(300, HIDDEN, generator=g) @ (torch.randn(HIDDEN, HIDDEN, generator=g) / HIDDEN**0.5)
        x[:, ::40] *= 50
        x[:, 1::40] += 0.02 * x[:, ::40]
        w = torch.randn(HIDDEN, HIDDEN, generator=g) * 0.05
        w[:, ::37] *= 20
        tensors[f"blocks.{b}.fc.weight"] = w
        records[f"blocks.{b}.fc"] = LayerStats(x.bfloat16(), x.abs().amax(0), x.mean(0), 1.0)
    model, out = save(tmp_path / "m.safetensors", tensors), tmp_path / "out.safetensors"
    inputs = save_calibration(tmp_path / "inputs.safetensors", records)
    convert_to_int8(model, out, format=form, calibration_data=str(inputs), preset="none")
    report = verify(model, out)
    assert report.ok, report.faults
    assert min(r.weight_db for r in report.layers) < 24  # rounding keeps more in fp8 and mxfp8

    def swap(t: Tensors, m: dict[str, str]) -> None:
        w = _bytes(t["blocks.0.fc.weight"])
        w[[3, 9]] = w[[9, 3]]

    assert "not those that were written" in verify(model, spoil(out, tmp_path / "b", swap)).faults[0].fault
