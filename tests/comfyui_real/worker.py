"""The process in which a ComfyUI checkout is imported: ``python worker.py COMFYUI``, a JSON request per line.

Each request names a function of `families`, `loading`, `modules` or `tiny_models` and its keywords;
the answer is its result, or {"error": its type and text}.
"""

import json
import os
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever ComfyUI prints is no answer
    sys.path[:0] = [str(HERE), sys.argv[1]]
    from launch import stand_in

    stand_in()
    sys.argv = ["main.py", "--cpu", *sys.argv[2:]]
    import comfy.options

    comfy.options.enable_args_parsing()
    import families
    import loading
    import modules
    import tiny_models

    known = {m.__name__: m for m in (families, loading, modules, tiny_models)}
    for line in sys.stdin:
        request = json.loads(line)
        module = known[request.pop("module")]
        try:
            result = getattr(module, request.pop("function"))(**request)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)
    os._exit(0)  # ComfyUI's threads would keep the process


if __name__ == "__main__":
    main()
