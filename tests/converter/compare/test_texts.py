"""``ctq compare --perplexity``: a text through both checkpoints."""

import json
import math
import textwrap

import pytest
import torch
from peers import peer

from convert_to_quant.converter.cli.compare import main
from convert_to_quant.converter.compare.texts import read_windows
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.runtime import load_quantized, quantize_model, save_quantized

tokenizers = peer("tokenizers")

FACTORY = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.table, self.mix = nn.Embedding(32, 128), nn.Linear(128, 128)
            self.head = nn.Linear(128, 32) if head else None

        def forward(self, input_ids):
            x = self.table(input_ids)
            x = x + torch.tanh(self.mix(x.cumsum(1)))
            return {"last_hidden_state": x} if self.head is None else {"logits": self.head(x)}

    def language():
        return Net(True), torch.ones(1, 4, dtype=torch.int64)

    def encoder():
        return Net(False), torch.ones(1, 4, dtype=torch.int64)

    def other():
        return nn.Linear(3, 3), torch.ones(1, 3)
"""
WORDS = [f"w{i}" for i in range(32)]


@pytest.fixture
def files(tmp_path):
    """A text of 50 words, its tokenizer, and the factory file."""
    (tmp_path / "net.py").write_text(textwrap.dedent(FACTORY))
    picked = torch.randint(32, (50,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "text.txt").write_text(" ".join(WORDS[i] for i in picked))
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path, picked


def checkpoints(folder, kind: str):
    """(factory, the float model's file, the INT8 model's file)."""
    names: dict = {}
    exec((folder / "net.py").read_text(), names)
    model, _ = names[kind]()
    save_quantized(model, folder / "a.safetensors")
    if kind != "other":
        quantize_model(model, include="mix")
    save_quantized(model, folder / "b.safetensors")
    return names[kind]


def run(folder, kind: str, *more: str) -> int:
    return main(
        [
            *(str(folder / "a.safetensors"), str(folder / "b.safetensors")),
            *("--model", f"{folder / 'net.py'}:{kind}", "--dtype", "fp32", "--runs", "1"),
            *("--perplexity", str(folder / "text.txt"), "--tokenizer", str(folder), "--window", "16", *more),
        ]
    )


def test_the_text_is_cut_into_windows(files):
    folder, picked = files
    windows = read_windows(str(folder / "text.txt"), str(folder / "tokenizer.json"), 7)
    assert [w.shape for w in windows] == [(1, 7)] * 7, "the fiftieth word alone predicts nothing"
    assert torch.equal(torch.cat(windows, 1)[0], picked[:49])


def test_perplexity_of_a_language_model(files, capsys):
    """Against the same sum in float64, on each checkpoint."""
    folder, picked = files
    make = checkpoints(folder, "language")
    assert run(folder, "language", "--json", str(folder / "r.json")) == 0
    told = json.loads((folder / "r.json").read_text())["text"]
    assert (told["tokens"], told["windows"]) == (50, 4)
    for side, file in (("reference", "a"), ("candidate", "b")):
        model, _ = make()
        load_quantized(model, folder / f"{file}.safetensors")
        loss = 0.0
        for window in picked.split(16):
            with torch.no_grad():
                p = torch.softmax(model(input_ids=window[None])["logits"][0].double(), -1)
            loss -= sum(math.log(p[i, word]) for i, word in enumerate(window[1:].tolist()))
        assert told[side] == pytest.approx(math.exp(loss / 46), rel=1e-5)
    assert told["reference"] != told["candidate"]
    assert "perplexity of 50 tokens" in capsys.readouterr().out


def test_embeddings_of_an_encoder(files, capsys):
    folder, _ = files
    checkpoints(folder, "encoder")
    assert run(folder, "encoder", "--json", str(folder / "r.json")) == 0
    told = json.loads((folder / "r.json").read_text())["text"]
    assert 0.999 < told["worst_cosine"] <= told["cosine"] < 1
    assert "embeddings of 4 windows" in capsys.readouterr().out


def test_what_cannot_be_used_is_said(files):
    folder, _ = files
    (folder / "one.txt").write_text("w1")
    with pytest.raises(ConversionError, match="its 1 tokens are too few"):
        read_windows(str(folder / "one.txt"), str(folder), 8)
    with pytest.raises(ConversionError, match="cannot be read"):
        read_windows(str(folder / "absent.txt"), str(folder), 8)
    with pytest.raises(ConversionError, match=r"text.txt: is no tokenizer.json"):
        read_windows(str(folder / "text.txt"), str(folder / "text.txt"), 8)
    with pytest.raises(ConversionError, match="--perplexity needs --tokenizer"):
        main(["a", "b", "--model", "x.py:y", "--perplexity", "t"])
    checkpoints(folder, "other")
    with pytest.raises(ConversionError, match="the model of --model does not take input_ids"):
        run(folder, "other")


def test_the_text_is_not_written_over(files):
    folder, _ = files
    checkpoints(folder, "encoder")
    before = (folder / "text.txt").read_text()
    with pytest.raises(ConversionError, match=r"text\.txt"):
        run(folder, "encoder", "--json", str(folder / "text.txt"))
    assert (folder / "text.txt").read_text() == before
