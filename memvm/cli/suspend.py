"""`memvm suspend`: a running guest is saved, and ended."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_json, add_name
from memvm.cli.saving import add_file, add_storage
from memvm.manager.client import connect
from memvm.manager.protocol import DEFAULT_SUSPEND_TIME, record_from_json
from memvm.units import format_duration, parse_duration, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm suspend`."""
    parser.epilog = """\
The guest runs on while its memory is stored, and what it uses meanwhile is noted, for `memvm restore`
to load first. It is stopped when little is left to be stored, when more time would not help, or at one
of the bounds; and ended when FILE is whole and on the disk. If anything goes wrong, or with Ctrl-C, it
runs on, and an older FILE stays as it is.

examples:
  memvm suspend hub hub.ckpt
  memvm suspend --time 2s hub hub.ckpt
"""
    add_name(parser)
    add_file(parser)
    parser.add_argument(
        "--time",
        type=parse_duration,
        default=DEFAULT_SUSPEND_TIME,
        metavar="TIME",
        help=f"stop the guest after this long at the latest; {format_duration(DEFAULT_SUSPEND_TIME)} if not given",
    )
    parser.add_argument(
        "--data",
        type=parse_size,
        metavar="SIZE",
        help="stop it when so much memory has been stored; twice what it holds if not given",
    )
    add_storage(parser)
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the manager, and say what was saved."""
    from memvm.checkpoint.suspend import SuspendReport
    from memvm.report.checkpoints import suspend_text
    from memvm.report.progress import ProgressBar
    from memvm.report.records import to_json

    with connect(arguments.name) as client, ProgressBar(f"suspending {arguments.name}") as progress:
        answer = client.suspend(
            arguments.file,
            level=arguments.level,
            block_size=arguments.block_size,
            time=arguments.time,
            data=arguments.data,
            progress=progress,
        )
    report = record_from_json(SuspendReport, answer)
    print(to_json(report) if arguments.json else suspend_text(arguments.name, report))
    return 0
