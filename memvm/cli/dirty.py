"""`memvm dirty`: how much memory a guest writes, and where."""

from __future__ import annotations

import argparse
import time

from memvm.cli.parser import add_json, add_name
from memvm.errors import GuestStateError, UsageError
from memvm.manager.client import connect
from memvm.units import parse_duration

SHORTEST = 0.01
"""Seconds between two looks, at least: each is a small amount of work for the manager."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm dirty`."""
    parser.epilog = """\
A line for each interval: how much of the guest's memory was written (in whole pages, each counted once,
however often it was written), how fast that is, and how much the guest gave back. It ends with the guest,
with --count, or with Ctrl-C.

Where the kernel can note writes by itself (Linux 6.7; `memvm doctor` says) the guest is hardly slowed down;
otherwise, and while a live checkpoint or a lazy restore is under way, each page's first write in an interval
costs a page fault.
--json prints an object a line.

examples:
  memvm dirty hub
  memvm dirty hub --every 100ms --count 50 --json > hub.jsonl
  memvm dirty hub --count 1 --pages
"""
    add_name(parser)
    parser.add_argument(
        "--every", type=parse_duration, default=1.0, metavar="TIME", help="the interval; 1s if not given"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N intervals")
    parser.add_argument("--pages", action="store_true", help="show which pages, too")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Look again and again, and say what was found."""
    from memvm.report.dirty import dirty_heading, dirty_json, dirty_line, pages_text

    if arguments.every < SHORTEST:
        raise UsageError(f"dirty: an interval of {arguments.every} s is too short", hint="at least 10ms")
    if arguments.count is not None and arguments.count < 1:
        raise UsageError(f"dirty: --count {arguments.count}: at least 1")
    with connect(arguments.name) as client:
        client.dirty()
        if not arguments.json:
            print(dirty_heading(), flush=True)
        done, due = 0, time.monotonic()
        while arguments.count is None or done < arguments.count:
            due = max(due + arguments.every, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                look = client.dirty(pages=arguments.pages)
            except GuestStateError:
                if not done:
                    raise
                return 0  # the guest's end is the end of what there is to see
            done += 1
            print(dirty_json(look, pages=arguments.pages) if arguments.json else dirty_line(look), flush=True)
            if arguments.pages and not arguments.json:
                print(pages_text(look), flush=True)
    return 0
