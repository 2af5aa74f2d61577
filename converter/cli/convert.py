"""What the command line does with its models: convert or plan, one or many; returns the exit code.

torch is loaded by a conversion only: a dry run takes a tenth of the time that loading it does.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...files.atomic import new_file
from ...files.remote.push import push, require_push
from ...files.report import require_report, save_html
from ...formats.errors import ConversionError
from ..convert.batch import plan_batch, run_on
from ..executor import Executor
from ..options.command import CommandOptions
from ..options.settings import Settings
from ..plan.inputs import inputs_of, other_inputs
from ..preview.dry_run import create_template, plan_conversion
from ..progress import Progress, Silent
from .show_batch import show_batch
from .text import say


def run_one(settings: Settings, command: CommandOptions) -> int:
    """Convert or plan one model and show the result; returns 0. ConversionError when it fails."""
    _require_conversion(command)
    if command.dry_run == "create-template":
        _write_template(settings)
        return 0
    if command.html and not (command.dry_run and settings.target_size):
        raise ConversionError("--html draws size against quality: it needs --dry-run and --target-size")
    for place in (settings.json, command.html):
        require_report(place, inputs_of(settings))
    if command.push_to:
        if command.dry_run:
            raise ConversionError("--push-to uploads a result, and a dry run makes none; leave one out")
        require_push(command.push_to)
    with _executor(command) as executor:
        report = _report(settings, command, executor)
    if settings.json:
        report.save_json(settings.json)
    if command.html:
        from ..pages.mix import render

        save_html(command.html, render(report, report.mix), inputs_of(settings))
    _show(report, settings, command)
    if command.push_to:
        _push(report, settings, command)
    return 0


def run_many(inputs: Sequence[str], settings: Settings, command: CommandOptions) -> int:
    """Convert or plan several models, show each as it is done, then a table; returns 1 when any failed."""
    _require_conversion(command)
    if command.dry_run == "create-template":
        raise ConversionError("--dry-run create-template makes the template of one model; name one with -i")
    if command.html:
        raise ConversionError("--html draws the curve of one model; name one with -i")
    if command.push_to:
        raise ConversionError("--push-to uploads one model with its card; name one with -i")
    require_report(
        settings.json, [Path(f) for f in (*inputs, command.lora_map) if f] + other_inputs(settings)
    )
    batch = plan_batch(inputs, settings, command.pattern, command.lora_map, make_folder=not command.dry_run)

    def one(job: Settings) -> Any:
        report = _report(job, command, executor)
        _show(report, job, command)
        return report

    def show(job: Settings, report: Any) -> None:
        _show(report, job, command)

    with _executor(command) as executor:
        report = run_on(executor, batch, one, _tell, _progress(command), show)
    if settings.json:
        report.save_json(settings.json)
    show_batch(report)
    return 1 if report.failed else 0


def _push(report: Any, settings: Settings, command: CommandOptions) -> None:
    """Upload the output, and the LoRA of its errors where there is one, and say where they are."""
    from ..pages.card import card

    paths = [Path(report.output), *([Path(report.error_lora.path)] if report.error_lora else [])]
    assert command.push_to is not None
    if not command.quiet:
        say(f"uploading {', '.join(p.name for p in paths)} to {command.push_to}", file=sys.stderr, flush=True)
    files = {path.name: path for path in paths}
    where, wrote_card = push(command.push_to, files, card(report, settings), f"Upload {paths[0].name}")
    say(f"uploaded: {where}")
    if not wrote_card:
        say(f"note: {command.push_to} has a README.md, which stays as it is", file=sys.stderr)
    else:
        say("note: the license in its README.md is for you to fill in", file=sys.stderr)


def _report(settings: Settings, command: CommandOptions, executor: Executor | None) -> Any:
    if command.dry_run:
        return plan_conversion(settings)
    from ..convert.run import convert

    return convert(settings, _progress(command), executor)


def _progress(command: CommandOptions) -> Progress:
    from .bar import Bar

    return Bar() if sys.stderr.isatty() and not command.quiet else Silent()


def _require_conversion(command: CommandOptions) -> None:
    if command.ray is not None and command.dry_run:
        raise ConversionError("--ray is for conversions, and a dry run is made here; leave one out")


def _executor(command: CommandOptions) -> AbstractContextManager[Executor | None]:
    """Return what ``--ray`` asks for; None without it."""
    if command.ray is None:
        return nullcontext()
    from ..cluster.ray_executor import RayExecutor

    return RayExecutor(command.ray or None, (lambda line: None) if command.quiet else _tell)


def _tell(line: str) -> None:
    say(line, file=sys.stderr, flush=True)


def _show(report: Any, settings: Settings, command: CommandOptions) -> None:
    if command.quiet:
        say(report.summary())
        for warning in getattr(report, "warnings", ()):
            say(f"warning: {warning}", file=sys.stderr)
        return
    if command.dry_run:
        from .show_plan import show_plan

        show_plan(report, bool(command.verbose))
        return
    from .show import show_report

    show_report(report, every_layer=settings.report_quality or bool(command.verbose))


def _write_template(settings: Settings) -> None:
    path, text = create_template(settings)
    if path is None:
        say(text, end="")
        return
    with new_file(path, overwrite=settings.overwrite) as f:
        f.write(text.encode("utf-8"))
    say(f"{path}: a layer configuration of this plan; edit it and give it to --layer-config", file=sys.stderr)
