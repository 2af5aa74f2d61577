"""What a plan's output will say of itself in its header: see `stored.record`."""

from collections.abc import Iterable

from ...formats.algorithms import ROUNDING
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, tensor_name
from ..lora.merge import Merge
from ..stored.record import Entry, Record
from .merges import merged_note
from .steps import LEFT_OVER, Step


def planned(steps: Iterable[Step]) -> Record:
    """Return the record that a plan's steps ask for, its digests still empty."""
    steps = list(steps)
    layers, tensors, dropped = {}, {}, {}
    # W mu of a merged weight: the original, which is without the LoRAs, cannot tell it.
    merged = {tensor_name(s.layer_name, "bias") for s in steps if s.merges and s.folded}
    for step in steps:
        if step.action == "quantize":
            if what := _done_to_layer(step):
                own = (o.name for o in step.outputs if not o.name.endswith(".bias"))
                layers[step.layer_name] = Entry(what, step.algorithm, tuple(own), merged=bool(step.merges))
            if "bias" in step.companions:
                bias = tensor_name(step.layer_name, "bias")
                tensors[bias] = Entry("bias corrected" + _merged(step.bias_merges), "", (bias,))
        elif step.action == "drop" and step.reason != LEFT_OVER:
            dropped[step.name] = step.reason
        elif step.action == "cast" or (step.action == "keep" and (step.merges or step.name in merged)):
            name = step.outputs[0].name
            what = f"cast to {step.outputs[0].dtype}" if step.action == "cast" else "kept"
            folded = ", folded with its merged weight" if step.name in merged and step.folded else ""
            tensors[name] = Entry(what + folded + _merged(step.merges), "", (name,))
    return Record(layers, tensors, dropped)


def _done_to_layer(step: Step) -> str:
    """Say what was done to a layer besides rounding it; "" for nothing."""
    extra = step.format.extra if step.format else ()
    words = {PRE_QUANT_SCALE: "smoothed", INPUT_SCALE: "static input scale"}
    done = [step.algorithm] if step.algorithm != ROUNDING else []
    return ", ".join([*done, *(words.get(s, s) for s in extra)]) + _merged(step.merges, bool(done or extra))


def _merged(merges: tuple[Merge, ...], more: bool = True) -> str:
    note = merged_note(merges)
    return f", {note}" if note and more else note
