"""argparse, as all commands use it: mistakes are UsageError, and examples keep their lines."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from memvm.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_USUAL_WIDTH = 80


class Parser(argparse.ArgumentParser):
    """Raises UsageError, and takes no abbreviated options: scripts would come to rely on them."""

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=_formatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "-v",
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show tracebacks of errors",
        )

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """As argparse does, except that a reader that has gone is not taken for one that has read it."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for every mistake on the command line."""
        raise UsageError(f"{self.prog.removeprefix('memvm').strip() or 'memvm'}: {message}", hint=f"{self.prog} --help")


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for each option that is declared, and without a width it would import shutil to find it.
    return argparse.RawDescriptionHelpFormatter(prog, width=_terminal_width() - 2)


def _terminal_width() -> int:
    """As shutil.get_terminal_size has it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or _USUAL_WIDTH  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # closed, or no terminal
        return _USUAL_WIDTH


def add_name(parser: argparse.ArgumentParser) -> None:
    """The guest that a command is about."""
    parser.add_argument("name", metavar="NAME", help="the guest's name; `memvm ps` lists them")


def add_names(parser: argparse.ArgumentParser) -> None:
    """The guests that a command is about."""
    parser.add_argument("names", metavar="NAME", nargs="+", help="a guest's name; `memvm ps` lists them")


def parse_calls(text: str) -> int:
    """How many hypercalls a guest makes until it is paused. Raises UsageError."""
    if not text.isdecimal() or (calls := int(text)) < 1:
        raise UsageError(f"a guest cannot be paused after {text!r} system calls", hint="give a number, 1 or more")
    return calls


def add_json(parser: argparse.ArgumentParser) -> None:
    """The choice of output for programs."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_parents(parser: argparse.ArgumentParser) -> None:
    """Where the parents of a checkpoint are, if not where it looks by itself."""
    parser.add_argument(
        "--parent",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="where a checkpoint is that it was saved on top of, or its directory, if it was moved; may be repeated",
    )
