"""How many threads torch has while a conversion runs, and after it."""

import threading

import pytest
import torch
from models import block_weights, save

from convert_to_quant.converter.convert import run
from convert_to_quant.converter.convert.threads import one_spared
from convert_to_quant.quantization import ConversionError, convert_to_int8


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_another():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_one_is_spared_here_and_in_new_threads():
    with one_spared():
        assert (torch.get_num_threads(), threads_of_another()) == (2, 2)
    assert (torch.get_num_threads(), threads_of_another()) == (3, 3)
    torch.set_num_threads(1)
    with one_spared():
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("options", "count"), [({}, 2), ({"optimizer": "original", "num_iter": 1}, 3)])
def test_rounding_spares_one_and_what_takes_longer_has_all(options, count, tmp_path, monkeypatch):
    seen, sample = [], run.sample_rows
    monkeypatch.setattr(run, "sample_rows", lambda *a: (seen.append(torch.get_num_threads()), sample(*a))[1])
    convert_to_int8(save(tmp_path / "m.safetensors", block_weights()), tmp_path / "q.safetensors", **options)
    assert set(seen) == {count}
    assert torch.get_num_threads() == 3


def test_a_conversion_that_fails_gives_it_back(tmp_path):
    weights = block_weights()
    weights["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(ConversionError):
        convert_to_int8(save(tmp_path / "m.safetensors", weights), tmp_path / "q.safetensors")
    assert torch.get_num_threads() == 3
