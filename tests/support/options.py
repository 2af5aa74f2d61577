"""QuantizeOptions by the words of the command line."""

from typing import Any

from convert_to_quant.formats import Asked
from convert_to_quant.formats.choose import chosen
from convert_to_quant.quant.algorithms import QuantizeOptions


def options(
    algorithm: str = "rtn", scaling: str = "row", rotation: int = 0, block_size: int = 128, **rest: Any
) -> QuantizeOptions:
    """Options for INT8 with a granularity, a rotation and a block size."""
    form = chosen("int8", scaling).make(Asked(scaling, rotation, block_size))
    return QuantizeOptions(algorithm, form, **rest)
