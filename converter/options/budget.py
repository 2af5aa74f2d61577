"""The options of a mix of formats that fits a size; a part of Settings."""

from dataclasses import dataclass

from .size import target_size
from .values import KEEP, format_option, largest_format, option


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How large the output may be, and between which formats its layers may lie."""

    target_size: str | None = option(
        None,
        "--target-size",
        "--target_size",
        group="format",
        metavar="SIZE",
        type=target_size,
        help="give each layer the format that loses least while the file fits: 8GB, 7.5GiB, bytes, 60%%; "
        "a layer configuration comes first",
    )
    min_format: str | None = option(
        None,
        "--min-format",
        "--min_format",
        group="layers",
        metavar="NAME",
        type=format_option,
        help="with --target-size, store no layer smaller than this format does",
    )
    max_format: str | None = option(
        None,
        "--max-format",
        "--max_format",
        group="layers",
        metavar=f"NAME|{KEEP}",
        type=largest_format,
        help=f"with --target-size, store no layer larger than this format does; {KEEP}: leave them as they "
        "are where there is room",
    )
