"""The files that a guest has in memory, as a table."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from memvm.checkpoint.memory_files import MemoryFile
from memvm.report.table import printable, table
from memvm.units import format_size

_KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK}


def memory_files_text(files: Sequence[MemoryFile]) -> str:
    """A line for each name; a heading, and nothing else, where there is none."""
    return table(("mode", "size", "path"), map(_row, files), right={"size"})


def _row(file: MemoryFile) -> tuple[str, str, str]:
    path = printable(file.path)
    if file.kind == "gone":
        return "gone", "", path
    size = format_size(file.size) if file.kind == "file" else ""
    shown = f"{path} -> {printable(file.target)}" if file.kind == "link" else path
    return stat.filemode(_KINDS[file.kind] | file.mode), size, shown
