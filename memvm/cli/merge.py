"""`memvm merge`: a checkpoint and its parents become one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.parser import add_json, add_parents


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm merge`."""
    parser.epilog = """\
A checkpoint that was saved on top of another one needs that file, and perhaps others before it. OUT has all
of its pages and needs none of them. FILE and its parents stay as they are; checkpoints that were saved on
top of FILE need FILE, not OUT. Those of sealed guests cannot be merged: restore one, and save it whole.

examples:
  memvm merge tuesday.ckpt whole.ckpt
  memvm merge --parent /backup/monday.ckpt tuesday.ckpt whole.ckpt
"""
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint that has parents")
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint to write")
    add_parents(parser)
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Merge, and say what came of it."""
    from memvm.checkpoint.merge import merge
    from memvm.report.checkpoints import merge_text
    from memvm.report.progress import ProgressBar
    from memvm.report.records import to_json

    with ProgressBar(f"merging {arguments.file.name}") as progress:
        report = merge(arguments.file, arguments.out, progress, arguments.parent)
    print(to_json(report) if arguments.json else merge_text(report))
    return 0
