"""Copies files into guest RAM, for programs that are loaded and for files that are mapped."""

from __future__ import annotations

from memvm.files.description import Description
from memvm.memory.ram import GuestRam


def fill_from_file(ram: GuestRam, address: int, size: int, file: Description, offset: int) -> None:
    """Copy a part of a file into guest RAM, as far as the file goes. Raises BadPage, OSError."""
    if file.host_file is not None:
        ram.read_in(address, size, file.host_file, offset)
    else:
        ram.write(address, file.contents(offset, size))
