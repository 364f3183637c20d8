"""`memvm trace`: which pages a running guest accesses, when, and where in its program."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json, add_name
from memvm.errors import UsageError
from memvm.manager.client import Client, TraceBatch, connect
from memvm.say import say
from memvm.units import parse_duration

if TYPE_CHECKING:
    from memvm.recording.format import RecordingHeader

_FLUSH_INTERVAL = 1.0
"""Seconds for which a recording may be behind what was heard."""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm trace`."""
    parser.epilog = """\
Each page is heard of at its next access, and, of reads and writes, once more at its next write; with
--again it is traced anew after that time. The guest runs on, a little slower. Ctrl-C ends the trace.

examples:
  memvm trace hub --for 1s
  memvm trace hub --access w --pages 512-1023,2048 --again 100ms --instruction
  memvm trace hub --count 1000 --json | jq 'select(.page).page'
  memvm trace hub --again 50ms --for 10s --record hub.trace && memvm heatmap hub.trace
"""
    add_name(parser)
    parser.add_argument(
        "--pages", type=parse_pages, metavar="A-B,…", help="page numbers of guest RAM, from 0; all if not given"
    )
    parser.add_argument(
        "--access", choices=("r", "w", "rw"), default="rw", help="reads, writes or both; both if not given"
    )
    parser.add_argument("--again", type=parse_duration, metavar="TIME", help="trace each page anew after this time")
    parser.add_argument("--instruction", action="store_true", help="also show where in the program it was")
    parser.add_argument("--count", type=_count, metavar="N", help="end after so many accesses")
    parser.add_argument("--for", dest="seconds", type=parse_duration, metavar="TIME", help="end after this time")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write a recording, or with --json JSON lines",
    )
    add_json(parser)


def parse_pages(text: str) -> list[tuple[int, int]]:
    """Runs (first, count) from "7", "512-1023" and several of these with commas. Raises UsageError."""
    runs = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"not pages: {text!r}", hint="write them like 512-1023,2048")
        runs.append((int(first), int(last or first) - int(first) + 1))
    return runs


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"not a number of accesses: {text!r}")
    return int(text)


def execute(arguments: argparse.Namespace) -> int:
    """Ask the manager, and show or record what comes."""
    from memvm.report.traces import summary_text

    with connect(arguments.name) as client, ExitStack() as closing:
        header = _header(client) if arguments.json or arguments.record is not None else None
        batches = client.trace(
            pages=arguments.pages,
            access=arguments.access,
            again=arguments.again,
            instruction=arguments.instruction,
            events=arguments.count,
            seconds=arguments.seconds,
        )
        # A guest that may not be traced says so here, before anything is written of a trace that there was not.
        first = next(batches, None)
        take = _shower() if header is None else _recorder(header, arguments.record, closing, json_lines=arguments.json)
        heard = lost = 0
        try:
            for batch in chain([] if first is None else [first], batches):
                take(batch)
                heard, lost = heard + len(batch.events), lost + batch.dropped
        finally:
            if arguments.record is not None or not arguments.json:
                say(f"memvm: {summary_text(heard, lost)}")
    return 0


Take = Callable[[TraceBatch], None]


def _shower() -> Take:
    """What shows events to people."""
    from memvm.report.traces import dropped_text, event_text

    began: int | None = None

    def show(batch: TraceBatch) -> None:
        nonlocal began
        if batch.dropped:
            print(dropped_text(batch.dropped))
        if began is None and batch.events:
            began = batch.events[0].time
        for event in batch.events:
            print(event_text(event, began or 0))
        sys.stdout.flush()

    return show


def _header(client: Client) -> RecordingHeader:
    """Of a recording that begins now."""
    from memvm.machine.layout import RAM_BASE
    from memvm.recording.writer import header_for

    return header_for(client.name, RAM_BASE, client.status().ram_size)


def _recorder(header: RecordingHeader, path: Path | None, closing: ExitStack, *, json_lines: bool) -> Take:
    """What records events, in a file or else as JSON lines on standard output."""
    from memvm.recording.jsonlines import JsonLines
    from memvm.recording.writer import RecordingWriter

    if path is None:
        sys.stdout.flush()
        writer = RecordingWriter(open(os.dup(sys.stdout.fileno()), "wb", buffering=0), header, JsonLines())  # noqa: SIM115
    else:
        writer = RecordingWriter.create(path, header, json_lines=json_lines)
    closing.enter_context(writer)
    flushed = time.monotonic()

    def record(batch: TraceBatch) -> None:
        nonlocal flushed
        if batch.regions is not None:
            writer.regions(batch.regions)
        writer.drop(batch.dropped)
        writer.add(batch.events)
        if path is None or time.monotonic() - flushed >= _FLUSH_INTERVAL:  # larger blocks are compressed better
            writer.flush()
            flushed = time.monotonic()

    return record
