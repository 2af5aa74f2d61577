"""Run a ComfyUI checkout without installing it: ``python launch.py COMFYUI PORT_FILE [main.py's arguments]``.

The bound port is written to PORT_FILE. PORT_FILE "-" runs nothing: the module is then only imported for
`stand_in`, which lets ComfyUI's modules import where torchvision or torchaudio is not installed: the models
of these tests use neither.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
from pathlib import Path

OPTIONAL = ("torchvision", "torchaudio")


class _Absent(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"

        def missing(*args, **kwargs):
            raise ImportError(f"{full} is not installed")

        return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        found = name.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec):
        return _Absent(spec.name)

    def exec_module(self, module):
        pass


def stand_in() -> None:
    """Let the optional packages that are not installed be imported, and nothing of them be called."""
    absent = [n for n in OPTIONAL if importlib.util.find_spec(n) is None]
    if absent:
        sys.meta_path.append(_Finder(absent))


def tell_port(file: Path) -> None:
    """Write the port that the server is given to `file`: it is asked for any free one."""
    from aiohttp import web

    start = web.TCPSite.start

    async def start_and_tell(site):
        await start(site)
        part = file.with_suffix(".part")
        part.write_text(str(site._server.sockets[0].getsockname()[1]))
        os.replace(part, file)

    web.TCPSite.start = start_and_tell


if __name__ == "__main__":
    comfyui, port_file = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    stand_in()
    tell_port(port_file)
    sys.path[0] = str(comfyui)
    sys.argv = [str(comfyui / "main.py"), *sys.argv[3:]]
    runpy.run_path(str(comfyui / "main.py"), run_name="__main__")
