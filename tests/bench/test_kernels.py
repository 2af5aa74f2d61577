"""The kernel bench runs from end to end without a GPU, and refuses an op whose answer is wrong."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tiny_run_writes_its_record(tmp_path):
    command = [sys.executable, "bench/kernels", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    linears = {"Linear", "Packed linear", "Linear of small floats"}
    assert {row["section"] for row in record["rows"]} == {
        "Quantize",
        "Quantize weights",
        "Decode",
        "Dequantize",
        "LDLQ",
        *linears,
    }
    assert record["machine"]["torch"]
    linear = next(row for row in record["rows"] if row["name"] == "int8_linear")
    assert "bf16 F.linear" in linear["rivals"]
    assert next(tmp_path.glob("*.md")).read_text().startswith("# Kernels")


WRONG = """
import sys
sys.path.insert(0, "bench/kernels")
sys.argv = ["kernels", "--device", "cpu", "--tiny", "--out", sys.argv[1]]
from convert_to_quant import kernels
right = kernels.int8_linear
from convert_to_quant.kernels._library import _EAGER
kernels.int8_linear = lambda *a: right(*a) * (1 if _EAGER.get() else 1.5)
import runpy
runpy.run_path("bench/kernels/__main__.py", run_name="__main__")
"""


def test_a_wrong_op_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRONG, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "REFUSED" in done.stderr
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert not [row for row in record["rows"] if row["section"] == "Linear"]
