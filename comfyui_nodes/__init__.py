"""ComfyUI node pack of convert_to_quant: link or copy this folder into ``custom_nodes/``.

``ctq install-nodes PATH_TO_COMFYUI`` does it. Importing it inside ComfyUI adds ``int8_blockwise`` and
``pre_quant_scale`` for INT8 to what checkpoints may hold, and fits LoRAs to folded files; a ComfyUI without
the needed hooks is left as it is, with one line in the log per missing hook. Outside ComfyUI importing it
changes nothing.
"""

import logging
import os
import sys

logger = logging.getLogger("convert_to_quant.nodes")

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}


def _reach_package() -> None:
    """Let a linked checkout find the package beside this folder even where it is not installed."""
    try:
        import convert_to_quant  # noqa: F401
    except ImportError:
        root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
        if os.path.isfile(os.path.join(root, "convert_to_quant", "__init__.py")):
            # At the end: the checkout's other folders must not hide anything.
            sys.path.append(root)


def _start() -> None:
    _reach_package()
    try:
        from .hooks import install
        from .nodes import NODES
    except ImportError as e:
        logger.error(
            "convert_to_quant nodes are not available: %s. Install the package into ComfyUI's Python "
            "from a checkout: python -m pip install . (PyPI's convert_to_quant is another tool)",
            e,
        )
        return
    NODE_CLASS_MAPPINGS.update({name: node for name, (node, _) in NODES.items()})
    NODE_DISPLAY_NAME_MAPPINGS.update({name: title for name, (_, title) in NODES.items()})
    for feature, reason in install().items():
        if reason:
            logger.warning("convert_to_quant: %s is not available: %s", feature, reason)


_start()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
