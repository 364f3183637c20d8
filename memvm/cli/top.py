"""`memvm top`: all guests, and what they do a second."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json
from memvm.errors import UsageError
from memvm.units import parse_duration

if TYPE_CHECKING:
    from memvm.manager.watch import Watcher
    from memvm.report.rates import GuestActivity

SHORTEST_INTERVAL = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm top`."""
    parser.epilog = """\
TOUCHED is what of the guest's RAM holds memory, LOADED how much of a restored guest's memory is there,
DEFERRED what is still in the checkpoint. DIRTY/s and WORKSET are known only while somebody has them
measured. P50 and P99 are how long the manager takes to answer a page fault. A narrow terminal shows fewer
columns.

keys: q quits, p or space stops the drawing and lets it go on, n c t d w f h choose the order of the guests.

Without a terminal it prints one table, after one interval.
"""
    parser.add_argument("--interval", metavar="TIME", default="1s", help="time between two looks (default: 1s)")
    parser.add_argument("--once", action="store_true", help="print one table, after one interval, and end")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Look, and look again."""
    from memvm.manager.watch import ANSWER_TIME, Watcher

    interval = parse_duration(arguments.interval)
    if interval < SHORTEST_INTERVAL:
        raise UsageError(f"--interval {arguments.interval} is too short", hint=f"at least {SHORTEST_INTERVAL:g}s")
    live = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if arguments.once or arguments.json or not live:
        # There is no later look that would see what comes late.
        return _show_once(Watcher(look_time=ANSWER_TIME), interval, arguments.json)
    return _watch(Watcher(), interval)


def _look(watcher: Watcher) -> list[GuestActivity]:
    from memvm.report.rates import activity

    return [activity(sighting) for sighting in watcher.look()]


def _show_once(watcher: Watcher, interval: float, as_json: bool) -> int:
    from memvm.report.records import to_json
    from memvm.report.top import ordered, table_lines, text_of

    watcher.look()
    time.sleep(interval)
    guests = ordered(_look(watcher), "n")
    width = shutil.get_terminal_size((160, 50)).columns if sys.stdout is not None and sys.stdout.isatty() else 1 << 20
    print(to_json(guests) if as_json else text_of(table_lines(guests, width)))
    return 0


def _watch(watcher: Watcher, interval: float) -> int:
    from rich.console import Console
    from rich.live import Live

    from memvm.cli.keys import Keys
    from memvm.report.top import ViewState, drawing_of, pressed, screen

    console = Console()
    state: ViewState | None = ViewState()
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        guests = _look(watcher)
        next_look = time.monotonic() + interval
        drawn: ViewState | None = None
        while state is not None:
            if not state.paused or state != drawn:
                width, height = console.size
                live.update(drawing_of(screen(guests, state, width, height)), refresh=True)
                drawn = state
            for key in keys.wait(next_look - time.monotonic()):
                state = pressed(state, key)
                if state is None:
                    break
            if time.monotonic() >= next_look:
                # Looked at while paused as well, so that the figures are those of one interval when it goes on.
                latest = _look(watcher)
                guests = guests if state is not None and state.paused else latest
                next_look = max(next_look + interval, time.monotonic())
    return 0
