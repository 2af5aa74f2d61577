"""Every flag of ``--help all`` is used by a test, by its spelling or by its keyword in Python."""

import argparse
import contextlib
import io
import re
from pathlib import Path

import pytest

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.cli.parser import ConvertParser

TESTS = Path(__file__).parents[2]


def help_page(topic):
    page = io.StringIO()
    with contextlib.redirect_stdout(page), pytest.raises(SystemExit):
        main(["--help", topic])
    return page.getvalue()


def flags():
    """(flag, keyword) of every option on the page with all topics."""
    actions = ConvertParser("x", [])._actions
    listed = set(re.findall(r"(?<![\w-])--[a-zA-Z0-9][\w-]*", help_page("all")))
    return sorted(
        (flag, action.dest) for action in actions for flag in action.option_strings if flag in listed
    )


def sources():
    return "\n".join(p.read_text() for p in TESTS.rglob("test_*.py") if p != Path(__file__))


@pytest.mark.parametrize(("flag", "keyword"), flags())
def test_flag_is_used(flag, keyword):
    spelled = rf"(?<![\w-])(?:{re.escape(flag)}|{re.escape('--' + flag[2:].replace('-', '_'))})(?![\w-])"
    by_keyword = rf"\b{keyword}\s*[=\"':]" if keyword != "keep_sets" else f'"{flag[2:]}":'
    text = sources()
    assert re.search(spelled, text) or re.search(by_keyword, text), f"no test uses {flag} or {keyword}="


def test_the_help_page_shows_every_topic():
    page = help_page("all")
    for flag in ("--layer-config", "--dry-run", "--pattern", "--merge-lora", "--quality-threshold", "--wan"):
        assert flag in page
    assert "--layer-config" not in help_page("checks")


def test_both_spellings_of_every_long_flag_are_accepted():
    for action in ConvertParser("x", [])._actions:
        if action.dest in ("keep_sets", "help", "version"):
            continue  # the model flags are spelled as people know them
        if action.help == argparse.SUPPRESS:
            continue  # spelled as the other tool does: see test_peer_options.py
        for flag in action.option_strings:
            if "-" in flag[2:] and not flag.startswith("--no-"):
                assert "--" + flag[2:].replace("-", "_") in action.option_strings, flag
