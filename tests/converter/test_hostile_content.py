"""JSON, LoRAs and calibrations that others made: refused with the file's name, no traceback, no hang."""

import contextlib
import io
import json
import random

import pytest
import torch
from models import block_weights, save
from safetensors.torch import load_file, save_file

from convert_to_quant.converter.cli.main import main

LAYER = "blocks.0.mlp.fc1"
N, K = 512, 256


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


def run(*argv):
    """(exit code, standard error) of a command line; anything but an orderly end fails the test."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(a) for a in argv])
    return code, err.getvalue()


def lora(**changed):
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(4, K) * 0.01,
        f"{LAYER}.lora_up.weight": torch.randn(N, 4) * 0.01,
        f"{LAYER}.alpha": torch.tensor(4.0),
    }
    named = {f"{LAYER}.{n.replace('__', '.')}": t for n, t in changed.items()}
    return {n: t for n, t in {**tensors, **named}.items() if t is not None}


LORAS = {
    "rank 0": (
        lora(lora_down__weight=torch.empty(0, K), lora_up__weight=torch.empty(N, 0)),
        "holds no values",
    ),
    "scalar down": (lora(lora_down__weight=torch.tensor(1.0)), "is no matrix"),
    "flat up": (lora(lora_up__weight=torch.ones(N)), "is no matrix"),
    "NaN alpha": (lora(alpha=torch.tensor(float("nan"))), "holds NaN or Inf"),
    "two alphas": (lora(alpha=torch.ones(2)), "is not one number"),
    "no alpha in alpha": (lora(alpha=torch.empty(0)), "holds no values"),
    "integers": (lora(lora_up__weight=torch.ones(N, 4, dtype=torch.int32)), "not as floats"),
    "scalar magnitude": (lora(dora_scale=torch.tensor(1.0)), "is no matrix"),
    "infinite": (lora(lora_up__weight=torch.full((N, 4), float("inf"))), "holds NaN or Inf"),
    "other ranks": (lora(lora_up__weight=torch.ones(N, 5)), "do not fit each other"),
    "down alone": (lora(lora_up__weight=None), "not a whole LoRA"),
}


@pytest.mark.parametrize(("tensors", "message"), LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("flag", ["--merge-lora", "--calibration-lora"])
def test_loras_of_odd_contents_are_refused_by_name(tmp_path, model, tensors, message, flag):
    path = save(tmp_path / "l.safetensors", tensors)
    code, err = run("-i", model, flag, path)
    assert code == 1
    assert message in err
    assert str(path) in err


METADATA = [
    ({"ss_network_alpha": "nan"}, "ss_network_alpha in its metadata is nan"),
    ({"lora_adapter_metadata": "[" * 9999}, "JSON"),
    ({"lora_adapter_metadata": '{"lora_alpha": "8"}'}, "lora_alpha: must be a finite number, not '8'"),
    ({"lora_adapter_metadata": '{"lora_alpha": NaN}'}, "must be a finite number, not nan"),
    ({"lora_adapter_metadata": '{"alpha_pattern": [1]}'}, "alpha_pattern: must be a JSON object"),
    ({"lora_adapter_metadata": '{"alpha_pattern": {"(": 1}}'}, "alpha_pattern '(': not a regular expression"),
    ({"lora_adapter_metadata": '{"alpha_pattern": {"(x+x+)+y": 1}, "lora_alpha": 4}'}, ""),
    ({"lora_adapter_metadata": '{"use_rslora": 1, "lora_alpha": 4}'}, "use_rslora: must be true or false"),
]


@pytest.mark.parametrize(("metadata", "message"), METADATA, ids=[str(m)[:60] for m, _ in METADATA])
def test_alpha_from_metadata_is_checked(tmp_path, model, metadata, message):
    path = tmp_path / "l.safetensors"
    long_name = f"blocks.{'x' * 200}.a"
    tensors = {**lora(alpha=None), f"{long_name}.lora_down.weight": torch.ones(1, 2)}
    save_file({**tensors, f"{long_name}.lora_up.weight": torch.ones(2, 1)}, path, metadata=metadata)
    code, err = run("-i", model, "--dry-run", "--merge-lora", path)
    assert code == (1 if message else 0)
    assert message in err


def record(**fields):
    base = {
        "samples": torch.randn(32, K).bfloat16(),
        "channel_max": torch.rand(K),
        "channel_mean": torch.zeros(K),
    }
    return {f"{LAYER}.{n}": t for n, t in {**base, **fields}.items() if t is not None}


CALIBRATIONS = {
    "scalar samples": (record(samples=torch.tensor(1.0)), "not floats [n, K]"),
    "integer samples": (record(samples=torch.ones(4, K, dtype=torch.int8)), "not floats [n, K]"),
    "matrix of maxima": (record(channel_max=torch.ones(2, K)), "not floats [K]"),
    "two scales": (record(input_scale=torch.ones(2)), "not one float"),
    "other columns": (record(samples=torch.ones(4, K + 1), channel_max=None), "it is of another model"),
    "NaN maxima": (record(channel_max=torch.full((K,), float("nan"))), "record it again"),
    "negative scale": (record(input_scale=torch.tensor(-1.0)), "an input_scale of -1; record it again"),
    "no tokens": ({f"{LAYER}.samples": torch.empty(0, K)}, "holds no <layer>"),
}


@pytest.mark.parametrize(("tensors", "message"), CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_calibrations_of_odd_contents_are_refused_by_name(tmp_path, model, tensors, message):
    path = save(tmp_path / "c.safetensors", tensors)
    code, err = run("-i", model, "--calibration-data", path)
    assert code == 1
    assert message in err
    assert str(path) in err


TAKEN = {
    "only maxima": (record(samples=None, channel_mean=None), {}),
    "no tokens, but maxima": (record(samples=torch.empty(0, K)), {}),
    "a shared record that is not there": (record(), {"shared": json.dumps({"blocks.1.mlp.fc1": "gone"})}),
}


@pytest.mark.parametrize(("tensors", "metadata"), TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize(
    "flags", [[], ["--smoothquant"], ["--static-activations"], ["--bias-correction"]], ids=str
)
def test_what_a_recorder_may_leave_out_is_taken(tmp_path, model, tensors, metadata, flags):
    path = save(tmp_path / "c.safetensors", tensors, metadata or None)
    code, err = run("-i", model, "-o", tmp_path / "q.safetensors", "--calibration-data", path, *flags)
    assert (code, "error" in err) == (0, False)


JSON_CALIBRATIONS = [
    ('{"layers": {"%s": {"channel_max": "x"}}}', "channel_max: must be a list, not 'x'"),
    ('{"layers": {"%s": {"input_scale": 0}}}', "input_scale: must be a finite number above 0"),
    ('{"layers": {"%s": {"channel_max": [1, -1]}}}', "number 2: must be a finite number of at least 0"),
    ('{"layers": [], "%s": 1}', "must be a JSON object"),
    ('{"layers": {"%s": {"input_scale": 1}}, "shared": {"a": 1}}', "'shared': 'a': must be a text"),
    ('{"%s": {"samples": [[1], [1, 2]]}}', "another model"),
    ('{"%s": "\\ud800"}', "half of a surrogate pair"),
]


@pytest.mark.parametrize(("text", "message"), JSON_CALIBRATIONS, ids=[m for _, m in JSON_CALIBRATIONS])
def test_json_calibrations_follow_their_schema(tmp_path, model, text, message):
    path = tmp_path / "c.json"
    path.write_text(text.replace("%s", LAYER))
    code, err = run("-i", model, "--calibration-data", path)
    assert code == 1
    assert message in err
    assert str(path) in err


def test_input_scales_of_the_other_tool_are_read(tmp_path, model):
    path, output = tmp_path / "s.json", tmp_path / "q.safetensors"
    path.write_text(json.dumps({LAYER: 0.015}))
    assert run("-i", model, "-o", output, "--input-scales", path, "--no-convrot")[0] == 0
    assert float(load_file(output)[f"{LAYER}.input_scale"]) == pytest.approx(0.015)


SEEDS = {
    "--layer-config": (
        '{"blocks\\\\.0\\\\..*": {"convrot_group_size": 64, "format": "int8", "skip": false}}',
        ".json",
    ),
    "--lora-map": ('{"model.safetensors": {"loras": [], "scale": 0.5, "dampen": true}}', ".json"),
    "--calibration-data": (
        '{"layers": {"a": {"input_scale": 1.5}}, "shared": {"b": "a"}}',
        ".json",
    ),
    "-i": ('{"metadata": {}, "weight_map": {"blocks.0.mlp.fc1.weight": "model.safetensors"}}', ".index.json"),
}
SPLICES = [
    "null",
    "1e999",
    "-1",
    "1.5",
    '"\\ud800"',
    "[",
    "{",
    "}",
    '"',
    "NaN",
    "[" * 5000,
    "9" * 5000,
    "\\",
    "(a+)+",
    "\0",
]


@pytest.mark.parametrize("flag", SEEDS)
@pytest.mark.parametrize("seed", range(25))
def test_mutated_json_ends_in_order(tmp_path, model, flag, seed):
    rng = random.Random(f"{flag} {seed}")
    text, ending = SEEDS[flag]
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = text[:at] + rng.choice([*SPLICES, text[at:end], ""]) + text[min(end, at + rng.randint(0, 9)) :]
    path = tmp_path / f"x{ending}"
    path.write_text(text, encoding="utf-8")
    argv = ["-i", path] if flag == "-i" else ["-i", model, flag, path]
    code, err = run(*argv, "--dry-run")
    assert code in (0, 1)
    assert code == 0 or err.startswith("error: ") or "error: " in err
