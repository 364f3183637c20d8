"""`memvm pause`: a guest stops where it is."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_name
from memvm.manager.client import connect


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm pause`."""
    add_name(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Stop the guest."""
    with connect(arguments.name) as client:
        client.pause()
    return 0
