"""`memvm inspect`: what is in a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.parser import add_json, add_parents


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm inspect`."""
    parser.epilog = """\
Without --verify only the index is read and checked, so that a file of any size is shown at once. --verify
reads the parents too, if the checkpoint was saved on top of another one. Of a sealed guest's checkpoint,
which is encrypted, nothing is shown.

examples:
  memvm inspect hub.ckpt
  memvm inspect --verify --json hub.ckpt
"""
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint")
    parser.add_argument("--verify", action="store_true", help="read and check every byte of it and its parents")
    add_parents(parser)
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Read the file, and show it."""
    from memvm.checkpoint.inspect import inspect
    from memvm.report.checkpoints import inspection_text
    from memvm.report.progress import ProgressBar
    from memvm.report.records import to_json

    with ProgressBar(f"verifying {arguments.file.name}") as progress:
        inspection = inspect(arguments.file, arguments.verify, progress, arguments.parent)
    print(to_json(inspection) if arguments.json else inspection_text(inspection))
    return 0
