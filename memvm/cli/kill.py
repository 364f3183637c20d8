"""`memvm kill`: guests are ended."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from memvm.cli.parser import add_names
from memvm.manager.client import connect


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm kill`."""
    parser.epilog = """\
When the command is done the guests and their managers have gone, and the names are free. If one of the
names is no running guest's, none is ended.
"""
    add_names(parser)


def execute(arguments: argparse.Namespace) -> int:
    """End the guests."""
    with ExitStack() as connections:
        clients = [connections.enter_context(connect(name)) for name in arguments.names]
        for client in clients:
            client.kill("the guest was ended by `memvm kill`")
    return 0
