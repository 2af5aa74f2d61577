"""Options of the command line that are about the run, not about one conversion."""

import re
from dataclasses import dataclass

from .values import option

DRY_RUNS = ("analyze", "create-template")


def dry_run_name(text: str) -> str:
    """Return a name in DRY_RUNS, of which `text` may be a spelling with underscores; else ValueError."""
    name = text.replace("_", "-")
    if name not in DRY_RUNS:
        raise ValueError(f"must be analyze or create-template, not {text!r}")
    return name


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_name(text: str) -> str:
    """Return the name of a repository on the hub, ORG/NAME; else ValueError."""
    if not _HUB_NAME.fullmatch(text) or ".." in text or "--" in text:
        raise ValueError(f"must be ORG/NAME, a repository on the Hugging Face Hub, not {text!r}")
    return text


LEVELS = ("DEBUG", "VERBOSE", "NORMAL", "MINIMAL")


def verbosity(text: str) -> str:
    """Return a level of LEVELS, in any case; else ValueError."""
    if text.upper() not in LEVELS:
        raise ValueError(f"must be {', '.join(LEVELS[:-1])} or {LEVELS[-1]}, not {text!r}")
    return text.upper()


@dataclass(frozen=True)
class CommandOptions:
    """What to do with the models that are named: convert them, or only plan; one, or many."""

    dry_run: str | None = option(
        None,
        "--dry-run",
        "--dry_run",
        group="run",
        metavar="analyze|create-template",
        nargs="?",
        const="analyze",
        type=dry_run_name,
        help="convert nothing: show what would happen to every layer (analyze, the default), or write that "
        "as a file for --layer-config (create-template; -o names the file, - is standard output)",
    )
    pattern: str | None = option(
        None,
        "--pattern",
        group="run",
        metavar="GLOB",
        help="take folders with -i, and convert each file in them that matches, as a model of its own",
    )
    lora_map: str | None = option(
        None,
        "--lora-map",
        "--lora_map",
        group="run",
        metavar="FILE",
        help="for several models, a JSON file that says which LoRAs to merge into which: its keys are file "
        "names or globs",
    )
    html: str | None = option(
        None,
        "--html",
        "--plot",
        group="checks",
        metavar="FILE",
        help="with --dry-run and --target-size, also draw size against quality, as one HTML page",
    )
    recipe: str | None = option(
        None,
        "--recipe",
        group="run",
        metavar="FILE",
        help="take options from this file, YAML or JSON, as ctq recipe prints them; what is also said on the "
        "command line comes first",
    )
    ray: str | None = option(
        None,
        "--ray",
        group="run",
        metavar="auto|local|HOST:PORT",
        nargs="?",
        const="",
        type=str,
        help="compute on a Ray cluster: several models at once, or the calibrated layers of one; auto is the "
        "cluster that runs on this machine, local one that begins and ends with this run (the default, where "
        "RAY_ADDRESS names none)",
    )
    push_to: str | None = option(
        None,
        "--push-to",
        "--push_to",
        group="run",
        metavar="ORG/NAME",
        type=hub_name,
        help="then upload the result, with a model card, to this repository on the Hugging Face Hub (made "
        "private where there is none)",
    )
    verbose: bool | str = option(
        False,
        "--verbose",
        group="checks",
        metavar="LEVEL",
        nargs="?",
        const=True,
        type=verbosity,
        help="list every layer at the end, not only the worst (also VERBOSE or DEBUG; NORMAL; MINIMAL is "
        "--quiet)",
    )
    quiet: bool = option(
        False,
        "--quiet",
        group="checks",
        action="store_true",
        help="show no table, note or progress: one line when it is done, and warnings",
    )

    def __post_init__(self) -> None:
        """Take the level MINIMAL as --quiet."""
        if self.verbose == "MINIMAL":
            object.__setattr__(self, "quiet", True)
        object.__setattr__(self, "verbose", self.verbose in (True, "VERBOSE", "DEBUG"))
