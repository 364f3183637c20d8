"""Predicts the launch digest of a guest without a process: the loader fills RAM as for a launch, and it is measured."""

from __future__ import annotations

from memvm.machine.config import GuestConfig
from memvm.machine.layout import RAM_BASE
from memvm.machine.loader import launch_records, load
from memvm.machine.measurement import Measurement, measure
from memvm.machine.program import read_program
from memvm.machine.space import AddressSpace
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE


def predict(config: GuestConfig, *, called: str | None = None, pages: bool = False) -> Measurement:
    """What `Machine.launch` would measure. With `pages`, the links tell pages apart.

    With `called`, the guest is told that it is this file, whichever it is. Raises what read_program raises.
    """
    program = read_program(config)
    if called is not None:
        program = program._replace(name=called)
    try:
        ram = GuestRam(RAM_BASE, config.ram_size // PAGE_SIZE * PAGE_SIZE)
    except BaseException:
        program.close()
        raise
    try:
        space = AddressSpace(ram, lambda address, size, protection: None)
        loaded = load(program, config, ram, space)
        return measure(ram, space, launch_records(program, config, loaded, space), pages=pages)
    finally:
        ram.close()
