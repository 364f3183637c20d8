"""Calls that change the address space: mmap, munmap, mprotect, mremap, brk.

Memory is allocated inside guest RAM, and only its protection is changed in the guest's page tables. A file that is
mapped is copied into guest RAM. So a private mapping does not see what is written to the file afterwards, which Linux
leaves open. A shared one of a file that the guest may change stays that file (machine/shared_files.py).
"""

from __future__ import annotations

import errno
from contextlib import suppress

from memvm.files.description import Description
from memvm.machine.callresult import CallError
from memvm.machine.filling import fill_from_file
from memvm.machine.guest import Guest, MappedFile
from memvm.machine.hypercalls.paths import refusable
from memvm.machine.hypercalls.table import Address, Argument, Call, Flags, Int, hypercall
from memvm.machine.settings import Name
from memvm.machine.shared_file import SharedMapping
from memvm.machine.shared_files import is_shared
from memvm.machine.space import OutOfMemory, Region, RegionKind, page_up
from memvm.memory.protection import Prot
from memvm.units import PAGE_SIZE

# include/uapi/asm-generic/mman-common.h, mman.h
MAP_SHARED, MAP_PRIVATE, MAP_TYPE = 1, 2, 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 0x10, 0x20, 0x100000
MAP_GROWSDOWN, MAP_HUGETLB = 0x100, 0x40000
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

_PROTECTIONS = Flags("prot", "PROT_NONE", PROT_READ=1, PROT_WRITE=2, PROT_EXEC=4)
_KNOWN_PROTECTION = 7
_ADDRESS_LIMIT = (1 << 47) - PAGE_SIZE  # TASK_SIZE: arch/x86/include/asm/page_64.h
_MAP_FLAGS = Flags(
    "flags",
    MAP_SHARED=MAP_SHARED,
    MAP_PRIVATE=MAP_PRIVATE,
    MAP_FIXED=MAP_FIXED,
    MAP_ANONYMOUS=MAP_ANONYMOUS,
    MAP_GROWSDOWN=MAP_GROWSDOWN,
    MAP_NORESERVE=0x4000,
    MAP_STACK=0x20000,
    MAP_FIXED_NOREPLACE=MAP_FIXED_NOREPLACE,
)


def checked_range(guest: Guest, address: int, size: int, error: int) -> int:
    """The end of a page-aligned range in guest RAM; EINVAL if misaligned, `error` if outside."""
    if address % PAGE_SIZE or not size:
        raise CallError(errno.EINVAL)
    end = address + page_up(size)
    if not guest.space.in_ram(address, end - address):
        raise CallError(error)
    return end


@hypercall(
    9,
    "mmap",
    Address("addr"),
    Argument("length"),
    _PROTECTIONS,
    _MAP_FLAGS,
    Int("fd"),
    Address("offset"),
    traced=True,
)
@refusable
def mmap(guest: Guest, call: Call, hint: int, size: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """Allocate guest RAM; at the hint if it is free there, from the top down otherwise."""
    if not size or protection & ~_KNOWN_PROTECTION or flags & MAP_TYPE not in (MAP_SHARED, MAP_PRIVATE):
        raise CallError(errno.EINVAL)
    _check_rights(guest, protection)
    file = None if flags & MAP_ANONYMOUS else _mappable(guest, fd, protection, flags, offset)
    if flags & MAP_HUGETLB:
        raise CallError(errno.ENOMEM)
    if size > guest.ram.size:
        raise OutOfMemory(size)
    size = page_up(size)
    shared = file is not None and flags & MAP_TYPE != MAP_PRIVATE and is_shared(file)
    if file is not None and shared and (start := _shared_place(guest, file, hint, size, offset, flags)) is not None:
        region = guest.space.region_at(start)
        assert region is not None
        if protection & Prot.WRITE:
            guest.shared.let_store(start, start + size)
        guest.space.protect(start, start + size, Prot(protection) | region.protection)
        guest.shared.add(start, start + size, offset, file)
        return start
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        start, end = hint, checked_range(guest, hint, size, errno.ENOMEM)
        if not flags & MAP_FIXED and guest.space.overlaps(start, end):
            raise CallError(errno.EEXIST)
    else:
        start = _free_range(guest, hint, size)
    region = Region(start, start + size, Prot(protection), RegionKind.ANONYMOUS if file is None else RegionKind.FILE)
    if file is None:
        guest.space.replace(region)
    else:
        _map_file(guest, region, file, offset)
        if shared:
            guest.shared.add(start, start + size, offset, file)
    return start


def _shared_place(guest: Guest, file: Description, hint: int, size: int, offset: int, flags: int) -> int | None:
    """The address of a mapping that has what is to be mapped already; None for a new one. Raises CallError."""
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if guest.shared.place(file, offset, size, range(hint, hint + size) if flags & MAP_FIXED else range(0)):
            raise CallError(errno.ENODEV)
        return None
    start = guest.shared.place(file, offset, size)
    return start if start is not None and guest.space.holds(start, size) else None


def _map_file(guest: Guest, region: Region, file: Description, offset: int) -> None:
    """Have a file's contents in a region.

    Dynamic loaders map a library as a whole first, and then its segments over that, most of them from the same places.
    Where the same contents are there already, and nobody could have changed them, only the rights are set.
    """
    file.settle(offset, region.size)
    facts, there = file.facts()._replace(accessed=0), guest.mapped_last
    whole_pages = max(0, facts.size - offset) // PAGE_SIZE * PAGE_SIZE
    what = MappedFile(region.start, min(region.end, region.start + whole_pages), region.start - offset, facts)
    writable = bool(region.protection & Prot.WRITE)
    if there is not None and there.has(what, region.end) and there.changes == guest.space.changes:
        guest.space.redeclare(region)
        if writable:
            guest.mapped_last = None
        return
    guest.space.replace(region)
    try:
        fill_from_file(guest.ram, region.start, min(region.size, max(0, facts.size - offset)), file, offset)
    except OSError as error:
        raise CallError(errno.EIO) from error
    guest.mapped_last = None if writable else what._replace(changes=guest.space.changes)


def _mappable(guest: Guest, fd: int, protection: int, flags: int, offset: int) -> Description:
    """The file that is to be mapped. Raises CallError."""
    file = guest.files.get(fd).stream
    if offset % PAGE_SIZE or offset >> 62:
        raise CallError(errno.EINVAL)
    if not file.readable:
        raise CallError(errno.EACCES)
    if flags & MAP_TYPE != MAP_PRIVATE and protection & Prot.WRITE and not file.writable:
        raise CallError(errno.EACCES)
    try:
        file.contents(0, 0)
    except OSError as error:
        raise CallError(errno.ENODEV) from error
    return file


def _check_rights(guest: Guest, protection: int) -> None:
    """EACCES for memory that is writable and executable, if the guest's settings forbid it."""
    both = Prot.WRITE | Prot.EXEC
    if protection & both == both and guest.launched.settings.value(Name.WX) == "off":
        raise CallError(errno.EACCES)


def _emptied_range(guest: Guest, start: int, size: int) -> int:
    end = checked_range(guest, start, size, errno.ENOMEM)
    guest.space.unmap(start, end)
    return start


def _free_range(guest: Guest, hint: int, size: int) -> int:
    hint = hint // PAGE_SIZE * PAGE_SIZE
    if hint and guest.space.in_ram(hint, size) and not guest.space.overlaps(hint, hint + size):
        return hint
    return guest.space.find_room(size)


@hypercall(11, "munmap", Address("addr"), Argument("length"), traced=True)
def munmap(guest: Guest, call: Call, start: int, size: int) -> int:
    """Free a range; what is not allocated in it is no error."""
    if start % PAGE_SIZE or not size or start + size > _ADDRESS_LIMIT:
        raise CallError(errno.EINVAL)
    end = min(start + page_up(size), guest.ram.end)
    start = max(start, guest.ram.base)
    if start < end:
        _unmap(guest, start, end)
    return 0


def _unmap(guest: Guest, start: int, end: int) -> None:
    """Free what is mapped once; a file that is mapped twice there is so once then."""
    for first, last in guest.shared.released(start, end):
        guest.space.unmap(first, last)


@hypercall(10, "mprotect", Address("addr"), Argument("length"), _PROTECTIONS, traced=True)
@refusable
def mprotect(guest: Guest, call: Call, start: int, size: int, protection: int) -> int:
    """Change the protection of an allocated range."""
    if start % PAGE_SIZE or protection & ~_KNOWN_PROTECTION:
        raise CallError(errno.EINVAL)
    if not size:
        return 0
    _check_rights(guest, protection)
    end = checked_range(guest, start, size, errno.ENOMEM)
    if not guest.space.holds(start, end - start):
        raise CallError(errno.ENOMEM)
    covering = guest.shared.covering(start, end)
    if protection & Prot.WRITE and not all(mapping.file.writable for mapping in covering):
        raise CallError(errno.EACCES)
    if protection & Prot.WRITE and covering:
        guest.shared.let_store(start, end)
    guest.space.protect(start, end, Prot(protection))
    return 0


@hypercall(
    25,
    "mremap",
    Address("old"),
    Argument("old_size"),
    Argument("new_size"),
    Flags("flags", MREMAP_MAYMOVE=1, MREMAP_FIXED=2, MREMAP_DONTUNMAP=4),
    Address("new"),
    traced=True,
)
@refusable
def mremap(guest: Guest, call: Call, old: int, old_size: int, new_size: int, flags: int, new: int) -> int:
    """Shrink, grow in place, or move; moving copies what is there, inside guest RAM."""
    known = MREMAP_MAYMOVE | MREMAP_FIXED
    if flags & ~known or (flags & MREMAP_FIXED and not flags & MREMAP_MAYMOVE) or not new_size:
        raise CallError(errno.EINVAL)
    old_end = checked_range(guest, old, old_size, errno.EFAULT)
    if new_size > guest.ram.size:
        raise CallError(errno.ENOMEM)
    old_size, new_size = old_end - old, page_up(new_size)
    region = guest.space.region_at(old)
    if region is None or not guest.space.holds(old, old_size):
        raise CallError(errno.EFAULT)
    if flags & MREMAP_FIXED:
        if new < old_end and new + new_size > old:
            raise CallError(errno.EINVAL)
        start = _emptied_range(guest, new, new_size)
        return _move(guest, region, (old, old_end), start, new_size)
    if new_size <= old_size:
        if new_size < old_size:
            _unmap(guest, old + new_size, old_end)
        return old
    if region.end < old_end:
        raise CallError(errno.EFAULT)
    behind = old + new_size
    if guest.space.in_ram(old_end, behind - old_end) and not guest.space.overlaps(old_end, behind):
        _grow(guest, region, old_end, behind)
        return old
    if not flags & MREMAP_MAYMOVE:
        raise CallError(errno.ENOMEM)
    return _move(guest, region, (old, old_end), _free_range(guest, 0, new_size), new_size)


def _grow(guest: Guest, region: Region, start: int, end: int) -> None:
    """Allocate what is behind a region, which goes on there."""
    shared = guest.shared.covering(start - PAGE_SIZE, start)
    grown = region._replace(start=start, end=end)
    guest.space.map(grown)
    for mapping in shared[:1]:
        offset = mapping.offset + start - mapping.start
        _map_file(guest, grown, mapping.file, offset)
        guest.shared.add(start, end, offset, mapping.file)


def _move(guest: Guest, region: Region, old: tuple[int, int], new: int, new_size: int) -> int:
    start, end = old
    if shared := guest.shared.covering(start, end):
        return _move_shared(guest, region, shared, old, new, new_size)
    guest.space.map(region._replace(start=new, end=new + new_size, kind=RegionKind.ANONYMOUS))
    guest.ram.move(start, new, min(end - start, new_size))
    guest.space.unmap(start, end)
    return new


def _move_shared(
    guest: Guest, region: Region, shared: list[SharedMapping], old: tuple[int, int], new: int, new_size: int
) -> int:
    """A mapping of a file is made anew elsewhere, once it has gone from where it was."""
    start, end = old
    mapping = shared[0]
    if len(shared) > 1 or mapping.start > start or mapping.end < end:
        raise CallError(errno.ENOMEM)
    offset = mapping.offset + start - mapping.start
    file = mapping.file
    file.users += 1
    try:
        guest.space.unmap(start, end)
        moved = region._replace(start=new, end=new + new_size)
        _map_file(guest, moved, file, offset)
        guest.shared.add(new, new + new_size, offset, file)
    finally:
        file.users -= 1
    return new


@hypercall(12, "brk", Address("addr"), traced=True)
def brk(guest: Guest, call: Call, address: int) -> int:
    """Move the end of the heap; the answer is where it is, also when there was no room."""
    if address and address != guest.space.heap_end:
        with suppress(OutOfMemory):
            guest.space.set_break(address)
    return guest.space.heap_end
