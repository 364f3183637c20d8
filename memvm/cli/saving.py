"""The arguments that `memvm checkpoint` and `memvm suspend` share: where a guest is saved, and how it is stored."""

from __future__ import annotations

import argparse
from pathlib import Path

from memvm.manager.protocol import DEFAULT_BLOCK_SIZE, DEFAULT_LEVEL
from memvm.units import format_size, parse_size


def add_file(parser: argparse.ArgumentParser) -> None:
    """The file to write."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the checkpoint to write")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """How pages are compressed and written."""
    parser.add_argument(
        "--level",
        type=int,
        default=DEFAULT_LEVEL,
        metavar="N",
        help=f"zstd's level, higher is smaller and slower; {DEFAULT_LEVEL} if not given",
    )
    parser.add_argument(
        "--block-size",
        type=parse_size,
        default=DEFAULT_BLOCK_SIZE,
        metavar="SIZE",
        help=f"how much to write at a time; {format_size(DEFAULT_BLOCK_SIZE)} if not given",
    )
