"""``ctq completion``: scripts by which shells complete commands, options and values; made of the parsers."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .parser import ConvertParser, shown_spellings
from .text import say

PROGRAMS = ("ctq", "convert_to_quant")
CONVERT = "convert"
"""What the command without a name is called in the scripts."""

_USAGE = """\
usage: ctq completion bash|zsh|fish    print a script that completes ctq's commands, options and values

  bash   ctq completion bash > ~/.local/share/bash-completion/completions/ctq
  zsh    ctq completion zsh > ~/.zfunc/_ctq          (with ~/.zfunc in fpath, before compinit)
  fish   ctq completion fish > ~/.config/fish/completions/ctq.fish
"""


@dataclass(frozen=True)
class Option:
    """An option: its spellings, its help in one line, whether a value follows; the values if they are few."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> int:
    """Print a script; returns 0, or 2 for a wrong command line."""
    if list(argv) in (["-h"], ["--help"]):
        print(_USAGE, end="")
        return 0
    if len(argv) != 1 or argv[0] not in SHELLS:
        print(_USAGE, end="", file=sys.stderr)
        return 2
    say(SHELLS[argv[0]](_commands(), _described()), end="")
    return 0


def _described() -> dict[str, str]:
    from .main import COMMANDS

    return {name: text for name, (text, _) in COMMANDS.items()}


def _commands() -> dict[str, list[Option]]:
    """Return the options of every command, of a conversion first."""
    found = {CONVERT: list(_options(ConvertParser("ctq", [])))}
    for name in _described():
        module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
        if hasattr(module, "parser"):
            found[name] = list(_options(module.parser()))
    found["recipe"] = found[CONVERT]
    found["completion"] = [Option((), "", False, tuple(SHELLS))]
    return found


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            words = action.choices or str(action.metavar or "").split("|")
            values = tuple(str(w) for w in words if str(w) and str(w) == str(w).lower())
            text = " ".join((action.help or "").replace("%%", "%").split())
            yield Option(tuple(shown_spellings(action)), text, action.nargs != 0, values)


def bash(commands: Mapping[str, Sequence[Option]], described: Mapping[str, str]) -> str:
    """Return the script for bash. What is neither option nor known value is completed as a file."""
    names = "|".join(described)
    lines = [
        "# bash completion of ctq",
        "_ctq() {",
        '  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=convert words=""',
        f"  (( COMP_CWORD > 1 )) && case ${{COMP_WORDS[1]}} in {names}) command=${{COMP_WORDS[1]}};; esac",
        '  case "$command $prev" in',
        *(f"    {patterns}) words={shlex.quote(' '.join(v))};;" for patterns, v in _known(commands)),
        "    *) case $command in",
        *(f"      {c}) words={shlex.quote(' '.join(_first_words(o)))};;" for c, o in commands.items()),
        "    esac",
        "    [[ $cur == -* || $command == completion ]] || words=",
        f"    (( COMP_CWORD == 1 )) && [[ $cur != -* ]] && words={shlex.quote(' '.join(described))};;",
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        f"complete -o default -F _ctq {' '.join(PROGRAMS)}",
    ]
    return "\n".join(lines) + "\n"


def zsh(commands: Mapping[str, Sequence[Option]], described: Mapping[str, str]) -> str:
    """Return the script for zsh, with the help of each option."""
    names = "|".join(described)
    lines = [
        f"#compdef {' '.join(PROGRAMS)}",
        "_ctq() {",
        "  local command=convert",
        "  local -a found",
        f"  (( CURRENT > 2 )) && case $words[2] in ({names}) command=$words[2];; esac",
        '  case "$command $words[CURRENT-1]" in',
        *(f"    ({patterns}) compadd -- {shlex.join(v)}; return;;" for patterns, v in _known(commands)),
        "  esac",
        "  if (( CURRENT == 2 )) && [[ $PREFIX != -* ]]; then",
        f"    found=({' '.join(_pair(n, text) for n, text in described.items())})",
        "    _describe command found; return",
        "  fi",
        f"  [[ $command == completion ]] && {{ compadd -- {' '.join(SHELLS)}; return }}",
        "  [[ $PREFIX == -* ]] || { _files; return }",
        "  case $command in",
        *(
            f"    ({c}) found=({' '.join(_pair(f, o.help) for o in options for f in o.flags)});;"
            for c, options in commands.items()
        ),
        "  esac",
        "  _describe -o option found",
        "}",
        'if [[ $funcstack[1] == _ctq ]]; then _ctq "$@"; else compdef _ctq ' + " ".join(PROGRAMS) + "; fi",
    ]
    return "\n".join(lines) + "\n"


def fish(commands: Mapping[str, Sequence[Option]], described: Mapping[str, str]) -> str:
    """Return the script for fish, with the help of each option."""
    names = " ".join(described)
    lines = [
        "# fish completion of ctq",
        "function __ctq_is",
        "  set -l words (commandline -opc)",
        f"  set -l command {CONVERT}",
        f"  if set -q words[2]; and contains -- $words[2] {names}; set command $words[2]; end",
        "  test $command = $argv[1]",
        "end",
        "function __ctq_first; test (count (commandline -opc)) -eq 1; end",
        *(f"complete -c ctq -n __ctq_first -f -a {n} -d {_fish(text)}" for n, text in described.items()),
        f"complete -c ctq -n '__ctq_is completion' -f -a {_fish(' '.join(SHELLS))}",
    ]
    for command, options in commands.items():
        for o in options:
            if o.flags:
                spelled = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in o.flags)
                value = " -r" if o.takes_value else ""
                value += f" -f -a {_fish(' '.join(o.values))}" if o.values else ""
                where = _fish(f"__ctq_is {command}")
                lines.append(f"complete -c ctq -n {where} {spelled}{value} -d {_fish(o.help)}")
    lines += [f"complete -c {program} -w ctq" for program in PROGRAMS[1:]]
    return "\n".join(lines) + "\n"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def _known(commands: Mapping[str, Sequence[Option]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the shell patterns of "command flag" behind which one of a few values stands, and these."""
    for command, options in commands.items():
        for o in options:
            if o.flags and o.takes_value and o.values:
                yield "|".join(f'"{command} {flag}"' for flag in o.flags), o.values


def _first_words(options: Sequence[Option]) -> list[str]:
    return [word for o in options for word in (o.flags or o.values)]


def _pair(name: str, text: str) -> str:
    """Return zsh's ``name:help`` as one word."""
    return shlex.quote(f"{name.replace(':', chr(92) + ':')}:{text}")


def _fish(text: str) -> str:
    """Return a text as one word of fish: within single quotes it knows a backslash."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
