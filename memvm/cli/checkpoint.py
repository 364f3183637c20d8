"""`memvm checkpoint`: a running guest is saved, and goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.cli.parser import add_json, add_name
from memvm.cli.saving import add_file, add_storage
from memvm.manager.client import connect
from memvm.manager.protocol import record_from_json


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm checkpoint`."""
    parser.epilog = """\
The file holds the state of one instant. Until it is whole and on the disk it has another name, and an older
FILE stays as it is. Ctrl-C gives the checkpoint up; the guest goes on either way.

With --parent, what changed is known at once if OTHER is the guest's last checkpoint, or it was restored from
it with --eager, the guest is not sealed, and the kernel notes writes; otherwise contents are compared, which
is as right and takes longer. `memvm merge` makes one file of a checkpoint and those that it was saved on top
of, if they are not encrypted.

examples:
  memvm checkpoint hub hub.ckpt --live
  memvm checkpoint hub tuesday.ckpt --live --parent monday.ckpt
  memvm checkpoint --level 9 --block-size 8M hub hub.ckpt
"""
    add_name(parser)
    add_file(parser)
    parser.add_argument("--live", action="store_true", help="let the guest run while it is saved")
    parser.add_argument(
        "--parent",
        type=Path,
        metavar="OTHER",
        help="store only what changed since this checkpoint of the guest, which is needed to restore it then",
    )
    add_storage(parser)
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the manager, and say what was saved."""
    from memvm.checkpoint.save import SaveReport
    from memvm.report.checkpoints import save_text
    from memvm.report.progress import ProgressBar
    from memvm.report.records import to_json

    with connect(arguments.name) as client, ProgressBar(f"saving {arguments.name}") as progress:
        answer = client.checkpoint(
            arguments.file,
            live=arguments.live,
            parent=arguments.parent,
            level=arguments.level,
            block_size=arguments.block_size,
            progress=progress,
        )
    report = record_from_json(SaveReport, answer)
    print(to_json(report) if arguments.json else save_text(arguments.name, report))
    return 0
