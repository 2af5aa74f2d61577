"""Options of the command line that are about the run, not about one conversion."""

from dataclasses import dataclass

from .values import option

DRY_RUNS = ("analyze", "create-template")


def dry_run_name(text: str) -> str:
    """analyze or create-template (also create_template)."""
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
        help="read headers only and show the plan, or write it as a --layer-config to -o, - or a new file",
    )
    pattern: str | None = option(
        None,
        "--pattern",
        group="run",
        metavar="GLOB",
        help="convert each file that matches in the folders named by -i, as a model of its own",
    )
    lora_map: str | None = option(
        None,
        "--lora-map",
        "--lora_map",
        group="run",
        metavar="FILE",
        help="JSON: model file names or globs, each with the LoRAs to merge into that model",
    )
