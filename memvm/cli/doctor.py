"""`memvm doctor`: what this machine can do."""

from __future__ import annotations

import argparse

from memvm.cli.parser import add_json


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm doctor`."""
    parser.epilog = """\
MEMVM_FAULTS="POINT=ACTION,..." makes memvm fail at a fault point: kill, enospc, eio, stall=SECONDS or
hold=FILE (wait as long as there is that file), and @N after it for the N-th time only. It is there to test
that nothing is lost.
"""
    parser.add_argument(
        "--fault-points", action="store_true", help="list the points at which tests can make memvm fail"
    )
    parser.add_argument("--calls", action="store_true", help="list the system calls that guests can make")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Look, and say what was found."""
    if arguments.fault_points:
        return _show_fault_points(arguments.json)
    if arguments.calls:
        return _show_calls(arguments.json)
    from memvm.machine.probe import probe
    from memvm.report.capabilities import capabilities_text
    from memvm.report.records import to_json

    capabilities = probe()
    print(to_json(capabilities) if arguments.json else capabilities_text(capabilities))
    return 0


def _show_fault_points(as_json: bool) -> int:
    from memvm.faultpoints import FaultPoint
    from memvm.report.records import to_json
    from memvm.report.table import pairs

    points = [(point.value, point.meaning) for point in FaultPoint]
    print(to_json(dict(points)) if as_json else pairs(points))
    return 0


def _show_calls(as_json: bool) -> int:
    from memvm.machine.hypercalls.families import TABLE
    from memvm.report.hypercalls import answered_calls, calls_text
    from memvm.report.records import to_json

    calls = answered_calls(TABLE.values())
    print(to_json(calls) if as_json else calls_text(calls))
    return 0
