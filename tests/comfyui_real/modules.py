"""Single modules of real ComfyUI, filled from a file: banks of experts, tables of embeddings."""

import comfy.ops
import comfy.utils
import torch


def _filled(made, path, name):
    state = comfy.utils.load_torch_file(path)
    own = {k.removeprefix(name): t for k, t in state.items() if k.startswith(f"{name}.")}
    made._load_from_state_dict({f"x{k}": t for k, t in own.items()}, "x.", {}, True, [], [], [])
    return made


def experts(path, original, name):
    """Return the SQNR in dB of each expert's output, taken out of the resident bank, against the floats."""
    floats = comfy.utils.load_torch_file(original)[f"{name}.weight"].float()
    e, n, k = floats.shape
    ops = comfy.ops.mixed_precision_ops({}, torch.bfloat16)
    bank = _filled(ops.MoEExperts(e, k, n, bias=False), path, name)
    x = torch.randn(16, k, generator=torch.Generator().manual_seed(3))
    found = []
    with bank.bank_resident(x.bfloat16()) as resident:
        for i in range(e):
            want = x @ floats[i].T
            error = resident.expert_linear(x.bfloat16(), i).float() - want
            found.append(float(10 * torch.log10(want.square().sum() / error.square().sum())))
    return found


def embeddings(path, original, name):
    """Return the SQNR in dB of rows that are looked up, against the floats."""
    floats = comfy.utils.load_torch_file(original)[f"{name}.weight"].float()
    ops = comfy.ops.mixed_precision_ops({}, torch.bfloat16)
    table = _filled(ops.Embedding(*floats.shape), path, name)
    index = torch.randint(0, floats.shape[0], (2, 50), generator=torch.Generator().manual_seed(3))
    want, got = floats[index], table(index, out_dtype=torch.float32)
    return float(10 * torch.log10(want.square().sum() / (got - want).square().sum()))
