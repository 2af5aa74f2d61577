"""Options of the command line that are about the run, not about one conversion."""

from dataclasses import dataclass

from .values import option

DRY_RUNS = ("analyze", "create-template")


def dry_run_name(text: str) -> str:
    """Return a name in DRY_RUNS, of which `text` may be a spelling with underscores; else ValueError."""
    name = text.replace("_", "-")
    if name not in DRY_RUNS:
        raise ValueError(f"must be analyze or create-template, not {text!r}")
    return name


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
