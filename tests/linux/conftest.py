"""A process to trace: memvm's own stub, sealed, with pages of machine code that tests give it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from memvm.errors import HostError
from memvm.linux import ptrace
from memvm.linux.seccomp import Listener
from memvm.machine.layout import RAM_BASE
from memvm.machine.stub import Stub
from memvm.memory.ram import GuestRam
from memvm.units import MIB, PAGE_SIZE

MPROTECT = 10
"""The one call that the filter makes a ptrace stop; all others are notifications."""


class Sealed:
    """A traced process that stands still. This thread is its tracer."""

    def __init__(self) -> None:
        self.ram = GuestRam(RAM_BASE, 4 * MIB)
        self.stub = Stub()
        try:
            self.stub.start(self.ram)
        except HostError as error:
            self.ram.close()
            pytest.skip(f"no guest process can be started here: {error}")
        self.listener: Listener = self.stub.seal(self.ram, "guest:test", frozenset({MPROTECT}))
        self.pid = self.stub.pid

    def run(self, code: bytes, **registers: int) -> None:
        """Let the process run this machine code, with these registers; it stops or waits where that says so."""
        self.ram.write(RAM_BASE, code)
        self.stub.call(MPROTECT, RAM_BASE, PAGE_SIZE, 7)
        state = ptrace.get_registers(self.pid)
        state.rip, state.orig_rax = RAM_BASE, (1 << 64) - 1
        for name, value in registers.items():
            setattr(state, name, value)
        ptrace.set_registers(self.pid, state)
        ptrace.resume(self.pid)

    def close(self) -> None:
        """End the process, and release everything."""
        self.stub.kill()
        if self.stub.wait_status is None:
            os.waitpid(self.pid, ptrace.WALL)
        self.stub.close()
        os.close(self.listener.fd)
        self.ram.close()


@pytest.fixture
def sealed() -> Iterator[Sealed]:
    """A sealed process."""
    sealed = Sealed()
    yield sealed
    sealed.close()
