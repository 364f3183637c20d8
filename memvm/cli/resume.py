"""`memvm resume`: a paused guest goes on."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_name, parse_calls
from memvm.manager.client import connect


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm resume`."""
    add_name(parser)
    parser.add_argument(
        "--calls", metavar="N", type=parse_calls, default=0, help="pause it again after so many system calls"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Let the guest go on."""
    with connect(arguments.name) as client:
        client.resume(arguments.calls)
    return 0
