"""The options that give a guest files of the host's, for `memvm run` and `memvm restore`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memvm.files.specs import ViewSpec

_VIEWS = {
    "ro": "give the guest a directory, to read; at PATH in its tree",
    "rw": "the same, and what it changes stays in memory and goes into checkpoints",
    "pass": "the same, and what it changes is changed here, on the host: be careful",
}


def add_views(parser: argparse.ArgumentParser) -> None:
    """The options that give a guest files of the host's."""
    for access, text in _VIEWS.items():
        parser.add_argument(
            f"--{access}",
            metavar="DIR[:PATH]",
            dest="views",
            action="append",
            default=[],
            type=partial(_view, access),
            help=text,
        )


def _view(access: str, text: str) -> ViewSpec:
    from memvm.files.specs import Access, parse_view  # most guests are given none

    return parse_view(Access(access), text)
