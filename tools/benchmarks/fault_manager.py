"""The manager's side of the fault benchmark: a guest all of whose pages become deferred while it waits.

    python -m tools.benchmarks.fault_manager PROGRAM PAGES READ_FD ANSWER_FD

The guest (faultbench) fills its pages, says so, and reads a line. When something comes on READ_FD, its RAM is taken out
into memory, page by page, and deferred, as a lazy restore would do; the CPU that it shares with its manager is told
on ANSWER_FD.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.machine import Machine
from memvm.manager.process import run
from memvm.manager.ready import ReadyPipe
from memvm.memory.deferred import Chunk, DeferredPages
from memvm.memory.pages import PageRun
from memvm.units import MIB, PAGE_SIZE


class PagesInMemory:
    """A page source with chunks of one page: the number of a chunk is that of its page."""

    def __init__(self, contents: dict[int, bytes]) -> None:
        self._chunks = {page: Chunk([PageRun(page, 1)], data) for page, data in contents.items()}

    def chunk_of(self, page: int) -> int:
        """The page itself."""
        return page

    def runs_of(self, chunk: int) -> list[PageRun]:
        """The one page."""
        return [PageRun(chunk, 1)]

    def load(self, chunk: int) -> Chunk:
        """Nothing to read, nothing to decompress."""
        return self._chunks[chunk]


def defer_all(machine: Machine) -> None:
    """Take all pages out of guest RAM; the guest stands still."""
    ram = machine.ram
    runs = list(ram.touched())
    contents = {}
    for run_ in runs:
        for page in range(run_.first, run_.end):
            contents[page] = ram.read(ram.base + page * PAGE_SIZE, PAGE_SIZE)
        ram.discard(*run_)
    DeferredPages(ram, machine.engine, PagesInMemory(contents)).begin(runs)


def main(program: str, pages: int, read_fd: int, answer_fd: int) -> int:
    """Run the guest to its end; its exit status."""

    def load(name: str) -> Machine:
        config = GuestConfig(program, (program, str(pages), "1", "again"), ram_size=pages * PAGE_SIZE + 64 * MIB)
        machine = Machine.launch(config, RunOptions(name=name))
        threading.Thread(target=prepare, args=(machine,), daemon=True).start()
        return machine

    def prepare(machine: Machine) -> None:
        if os.read(read_fd, 1):
            machine.frozen(lambda: defer_all(machine))
            os.write(answer_fd, json.dumps({"cpu": machine.placement.cpu}).encode())
            os.close(answer_fd)

    return run(None, Path(program).name, load, _save, _save, ReadyPipe(None)).code


def _save(*_arguments: Any, **_options: Any) -> Any:
    raise NotImplementedError("nobody saves this guest")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:5])))
