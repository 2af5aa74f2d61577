"""One model, two checkpoints, the same inputs: how far apart, how big, how fast."""

from typing import Any

from ..plan.devices import usable_device
from .cases import plan_cases
from .report import Comparison
from .score import layer_cases, score
from .side import run_side
from .texts import read_windows, text_result


def compare(
    reference: str,
    candidate: str,
    factory: str,
    *,
    device: str = "cpu",
    dtype: str = "bf16",
    seed: int = 0,
    runs: int = 3,
    long: int = 4096,
    text: str | None = None,
    tokenizer: str = "",
    window: int = 512,
) -> Comparison:
    """Run the model that `factory` builds on both checkpoints, one after the other; returns a Comparison.

    factory: ``module:function`` or ``file.py:function``. The function returns ``(model, inputs)``: a module
        without weights worth keeping (it is built with its parameters on the meta device) and a
        tensor, a tuple of arguments or a dict of keywords. It is called under a fixed seed. Where it takes
        the keywords ``tokens`` and ``batch`` the cases of one token, of `long` tokens and of three
        batches are run too; elsewhere they are named as not run.
    dtype: of the cases other than the three dtype cases. runs: timed calls per case, after one untimed.
    text: a UTF-8 file to run through both, in windows of `window` tokens by the ``tokenizer.json`` at
        `tokenizer`: perplexity where the model answers with logits, else the cosine of its embeddings.

    Only one model is in memory at a time. ConversionError for a device, a factory, a checkpoint or an output
    that cannot be used.
    """
    usable_device(device)
    windows = read_windows(text, tokenizer, window) if text else []
    cases = plan_cases(factory, dtype, long, seed)
    settings: dict[str, Any] = {"device": device, "seed": seed, "runs": runs}
    ref_side, ref_outputs, _ = run_side(reference, factory, cases, keep_layers=False, **settings)
    cand_side, cand_outputs, layers = run_side(candidate, factory, cases, keep_layers=True, **settings)
    result = Comparison(ref_side, cand_side, device, seed)
    result.cases = [score(case, ref_outputs[case.name], cand_outputs[case.name]) for case in cases]
    result.layers = layer_cases(layers, device, seed)
    if windows:
        result.text = text_result(reference, candidate, factory, windows, device, dtype, seed)
    return result
