"""`memvm heatmap`: a recording as address against time."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from memvm.cli.parser import add_json

if TYPE_CHECKING:
    from memvm.recording.reader import Recording

DEFAULT_ROWS = 24
SVG_COLUMNS, SVG_ROWS = 200, 110


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `memvm heatmap`."""
    parser.epilog = """\
Wide parts of guest RAM that were not accessed are left out; a dashed line shows where. Shades stand for
about equal factors, from one access in a cell to the most that there are.

examples:
  memvm heatmap hub.trace
  memvm heatmap hub.trace --access w --svg hub.svg
"""
    parser.add_argument(
        "recording", metavar="RECORDING", type=Path, help="what `memvm trace` made; - is standard input"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw it as an SVG file instead")
    parser.add_argument("--access", choices=("r", "w", "rw"), default="rw", help="the accesses to count (default: all)")
    parser.add_argument("--width", metavar="N", type=int, help="characters across (default: the terminal's)")
    parser.add_argument("--rows", metavar="N", type=int, help=f"rows of addresses, at most (default: {DEFAULT_ROWS})")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII letters only")
    add_json(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Read the recording, and draw it."""
    from memvm.memory.events import Access
    from memvm.recording.heatmap import heat_map
    from memvm.recording.reader import Recording
    from memvm.report.heatmap_svg import heatmap_svg
    from memvm.report.heatmap_text import ASCII, UNICODE, heatmap_text
    from memvm.report.records import to_json

    access = {"r": Access.READ, "w": Access.WRITE, "rw": Access.READ | Access.WRITE}[arguments.access]
    with Recording.open(arguments.recording) as recording:
        columns, rows = _shape(arguments, recording)
        heat = heat_map(recording, columns, rows, access)
    if arguments.svg is not None:
        arguments.svg.write_text(heatmap_svg(heat), encoding="utf-8")
    if arguments.json:
        print(to_json(heat))
    elif arguments.svg is None:
        print(heatmap_text(heat, ASCII if arguments.ascii or not _shows_shades() else UNICODE))
    return 0


def _shape(arguments: argparse.Namespace, recording: Recording) -> tuple[int, int]:
    """Columns and rows."""
    from memvm.report.heatmap_text import columns_for

    if arguments.svg is not None:
        return arguments.width or SVG_COLUMNS, arguments.rows or SVG_ROWS
    width = shutil.get_terminal_size().columns if arguments.width is None else arguments.width
    header = recording.header
    return columns_for(
        width, header.ram_base + header.ram_size
    ), DEFAULT_ROWS if arguments.rows is None else arguments.rows


def _shows_shades() -> bool:
    """Whether whoever reads standard output can be shown what is not ASCII."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    return encoding.startswith("utf") and os.environ.get("TERM") != "dumb" and not _locale_is_plain()


def _locale_is_plain() -> bool:
    """Whether somebody asked for the C locale. Python hides that: it writes UTF-8 there (PEP 538 and PEP 540)."""
    everything, ctype, lang = (os.environ.get(name, "") for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    # C.UTF-8 is what Python puts there itself if LANG is C
    return (everything or (lang if ctype == "C.UTF-8" else ctype or lang)) in ("C", "POSIX")
