"""Loads a program into guest RAM as the kernel's execve would: segments, heap, stack with arguments and vectors.

AT_SYSINFO_EHDR names a vDSO of memvm's own, by which the C library tells the time without a hypercall.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from memvm.errors import ImageError, UsageError
from memvm.files.facts import USER
from memvm.linux.libc import auxiliary_value
from memvm.machine.config import GuestConfig
from memvm.machine.filling import fill_from_file
from memvm.machine.layout import stack_size
from memvm.machine.measurement import layout_record
from memvm.machine.program import HEAP_GAP, Program
from memvm.machine.settings import default_settings
from memvm.machine.space import AddressSpace, OutOfMemory, Region, RegionKind, page_up
from memvm.machine.vdso import vdso_image
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.units import PAGE_SIZE

_ARGUMENTS_SHARE = 4  # arguments and environment may take a quarter of the stack: execve(2)

# include/uapi/linux/auxvec.h
_AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_PAGESZ, _AT_BASE, _AT_FLAGS, _AT_ENTRY = 3, 4, 5, 6, 7, 8, 9
_AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_PLATFORM, _AT_HWCAP, _AT_CLKTCK = 11, 12, 13, 14, 15, 16, 17
_AT_SECURE, _AT_RANDOM, _AT_HWCAP2, _AT_EXECFN, _AT_SYSINFO_EHDR, _AT_MINSIGSTKSZ = 23, 25, 26, 31, 33, 51


class Loaded(NamedTuple):
    """Where the program begins to run."""

    entry: int
    stack_pointer: int
    random: int
    """Address of the 16 bytes of AT_RANDOM, zero until `draw_random`: what is measured before is always the same."""


def load(program: Program, config: GuestConfig, ram: GuestRam, space: AddressSpace) -> Loaded:
    """Put the program, its dynamic loader, its heap and its stack into empty guest RAM. Closes the program's files.

    Raises UsageError, and ImageError if a file cannot be read any more.
    """
    try:
        return _load(program, config, ram, space)
    except OSError as error:
        raise ImageError(f"{program.path}: {error.strerror}") from error
    finally:
        program.close()


def _load(program: Program, config: GuestConfig, ram: GuestRam, space: AddressSpace) -> Loaded:
    _put(program, RegionKind.IMAGE, ram, space)
    space.heap_start = space.heap_end = program.end + HEAP_GAP
    size = stack_size(ram.size)
    protection = Prot.READ | Prot.WRITE
    if program.image.stack_executable:
        protection |= Prot.EXEC
    space.map(Region(ram.end - size, ram.end, protection, RegionKind.STACK))
    first = program
    if program.interpreter is not None:
        first = _placed(program.interpreter, space)
        _put(first, RegionKind.FILE, ram, space)
    vdso = _map_vdso(ram, space)
    pointer, random = _Stack(ram, size).fill(program, config, first.bias if first is not program else 0, vdso)
    return Loaded(first.bias + first.image.entry, pointer, random)


def launch_records(program: Program, config: GuestConfig, loaded: Loaded, space: AddressSpace) -> dict[str, Any]:
    """What the launch digest has beside memory (machine/measurement.py).

    Of views, it has what the guest sees: where they are in its tree, and what it may do there. Which directories of the
    host's they are the guest cannot know, and what is in them may change at any time.
    """
    settings = {**default_settings(), **config.settings}
    # An open guest has no record of that, so that its digest is the one that it always was.
    sealed = {} if config.key_keeper is None else {"sealed": {"key keeper": config.key_keeper.hex()}}
    return {
        "layout": layout_record(space.ram, space, space.heap_start, loaded.entry, loaded.stack_pointer),
        "arguments": [readable(argument) for argument in program.argv],
        "environment": {readable(name): readable(value) for name, value in config.env.items()},
        "files": {
            "views": {readable(view.point): str(view.access) for view in config.views},
            "directory": readable(os.fsdecode(program.cwd)),
        },
        "machine": {"hostname": readable(config.hostname), "cpus": config.cpus},
        "settings": {name: f"{setting.value}:{setting.behaviour}" for name, setting in settings.items()},
    } | sealed


def readable(text: str) -> str:
    """Text from the host, whatever bytes it is made of, as text that JSON can have."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def draw_random(loaded: Loaded, ram: GuestRam) -> None:
    """Give the guest what must be different in each: its 16 random bytes."""
    ram.write(loaded.random, os.urandom(16))


def _placed(interpreter: Program, space: AddressSpace) -> Program:
    """A dynamic loader where mmap would put it."""
    low, high = interpreter.image.load_span
    if not interpreter.image.is_pie:
        return interpreter
    start = space.find_room(page_up(high - low), interpreter.image.alignment)
    return interpreter._replace(bias=start - low)


def _map_vdso(ram: GuestRam, space: AddressSpace) -> int:
    """Put the vDSO where there is room, and say where; 0 if there is none."""
    try:
        start = space.find_room(PAGE_SIZE)
        space.map(Region(start, start + PAGE_SIZE, Prot.READ | Prot.EXEC, RegionKind.VDSO))
    except OutOfMemory:
        return 0
    ram.write(start, vdso_image())
    return start


def _put(program: Program, kind: RegionKind, ram: GuestRam, space: AddressSpace) -> None:
    for segment in program.image.segments:
        fill_from_file(ram, program.bias + segment.vaddr, segment.file_size, program.file, segment.file_offset)
    for region in _image_regions(program, kind):
        space.map(region)


def _image_regions(program: Program, kind: RegionKind) -> list[Region]:
    """The pages of the segments; a page that two segments share has the rights of both."""
    rights: dict[int, Prot] = {}
    for segment in program.image.segments:
        start = (program.bias + segment.vaddr) // PAGE_SIZE
        end = page_up(program.bias + segment.vaddr + segment.mem_size) // PAGE_SIZE
        for page in {start, end - 1}:
            rights[page] = rights.get(page, Prot.NONE) | segment.protection
    regions: list[Region] = []
    for segment in program.image.segments:
        start = (program.bias + segment.vaddr) // PAGE_SIZE
        end = page_up(program.bias + segment.vaddr + segment.mem_size) // PAGE_SIZE
        parts = [(start, start + 1, rights[start])]
        if end - start > 2:
            parts.append((start + 1, end - 1, segment.protection))
        if end - start > 1:
            parts.append((end - 1, end, rights[end - 1]))
        for first, last, protection in parts:
            region = Region(first * PAGE_SIZE, last * PAGE_SIZE, protection, kind)
            if not regions or region.start >= regions[-1].end:
                regions.append(region)
    return regions


class _Stack:
    """The initial stack, as the ABI wants it (System V ABI, AMD64 supplement, 3.4.1), written from the top down."""

    def __init__(self, ram: GuestRam, size: int) -> None:
        self._ram = ram
        self._limit = ram.end - size // _ARGUMENTS_SHARE
        self._top = ram.end - 8

    def fill(self, program: Program, config: GuestConfig, interpreter_bias: int, vdso: int) -> tuple[int, int]:
        """Write strings, vectors and argc; returns the stack pointer, and where 16 random bytes have to be."""
        executable = self._push(os.fsencode(program.name) + b"\0")
        platform = self._push(b"x86_64\0")
        random = self._push(bytes(16))
        environment = [self._push(os.fsencode(f"{name}={value}") + b"\0") for name, value in config.env.items()]
        # never none: Linux gives an empty one too (since 5.18), for programs that count on argv[0]
        arguments = [self._push(os.fsencode(argument) + b"\0") for argument in program.argv or ("",)]
        image = program.image
        auxiliary = {
            _AT_HWCAP: _processor_features(),
            _AT_PAGESZ: PAGE_SIZE,
            _AT_CLKTCK: 100,
            _AT_PHDR: program.bias + image.phdr_vaddr,
            _AT_PHENT: image.phentsize,
            _AT_PHNUM: image.phnum,
            _AT_BASE: interpreter_bias,
            _AT_FLAGS: 0,
            _AT_ENTRY: program.bias + image.entry,
            **dict.fromkeys((_AT_UID, _AT_EUID, _AT_GID, _AT_EGID), USER),
            _AT_SECURE: 0,
            _AT_RANDOM: random,
            _AT_HWCAP2: 0,
            _AT_EXECFN: executable,
            _AT_PLATFORM: platform,
            _AT_MINSIGSTKSZ: 4096,
        }
        if vdso:
            auxiliary[_AT_SYSINFO_EHDR] = vdso
        auxiliary[0] = 0
        words = [len(arguments), *arguments, 0, *environment, 0]
        words += [word for pair in auxiliary.items() for word in pair]
        pointer = (self._top - 8 * len(words)) & -16
        self._check(pointer)
        self._ram.write(pointer, struct.pack(f"={len(words)}Q", *words))
        return pointer, random

    def _push(self, data: bytes) -> int:
        self._top -= len(data)
        self._check(self._top)
        self._ram.write(self._top, data)
        return self._top

    def _check(self, address: int) -> None:
        if address < self._limit:
            raise UsageError("arguments and environment are too long for the guest's stack", hint="give more --ram")


def _processor_features() -> int:
    """AT_HWCAP of this process, which is CPUID.1:EDX."""
    return auxiliary_value(_AT_HWCAP)
