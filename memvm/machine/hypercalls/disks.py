"""memvm's own calls by which a guest uses the disks that it is given (guests/include/memvm_disk.h).

A disk is a number from 0, in the order in which they are given. All sizes and offsets are in bytes, of whole sectors. A
sector that is not what was last written there, or cannot be read, is EIO, and a line for whoever runs the guest.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from memvm.errors import MemvmError
from memvm.machine.callresult import CallError
from memvm.machine.guest import Guest
from memvm.machine.hypercalls.table import OWN_CALLS, Address, Argument, Buffer, Call, Int, hypercall, signed

if TYPE_CHECKING:
    from memvm.disk.device import Disk

_INFO = struct.Struct("=QIIQ40s48s")  # struct memvm_disk_info of memvm_disk.h
_WRITABLE, _RAW, _PROTECTED = 1, 2, 4
_TURN = 1 << 20
"""Bytes that a call moves at the most: the others get their turn."""


@hypercall(OWN_CALLS + 0x10, "memvm_disk_info", Int("disk"), Address("info"), Argument("size"))
def disk_info(guest: Guest, call: Call, number: int, address: int, size: int) -> int:
    """What a disk is: size, sector size, how it is given, and by which header it is known. ENXIO if there is none."""
    facts = disk_of(guest, number).facts
    flags = _WRITABLE * facts.is_writable | _RAW * facts.is_raw | _PROTECTED * facts.is_protected
    answer = _INFO.pack(
        facts.size, facts.sector_size, flags, facts.first_tweak, facts.uuid.encode(), facts.header_digest
    )[:size]
    guest.memory.write(address, answer)
    return len(answer)


@hypercall(
    OWN_CALLS + 0x11, "memvm_disk_read", Int("disk"), Buffer("buffer", "result"), Argument("size"), Argument("offset")
)
def disk_read(guest: Guest, call: Call, number: int, address: int, size: int, offset: int) -> int:
    """Read sectors: as many as there are, and at most a MiB."""
    disk = disk_of(guest, number)
    size = _within(disk, size, offset)
    if not size:
        return 0
    guest.memory.writable(address, size)  # before anything is read
    try:
        data = disk.read(offset, size)
    except MemvmError as error:
        raise _failed(guest, error) from error
    guest.memory.write(address, data)
    return size


@hypercall(
    OWN_CALLS + 0x12, "memvm_disk_write", Int("disk"), Buffer("buffer", "size"), Argument("size"), Argument("offset")
)
def disk_write(guest: Guest, call: Call, number: int, address: int, size: int, offset: int) -> int:
    """Write sectors, at most a MiB. They outlive a crash after a flush."""
    disk = disk_of(guest, number)
    if not disk.facts.is_writable:
        raise CallError(errno.EROFS)
    wanted = size
    size = _within(disk, size, offset)
    if wanted and not size:
        raise CallError(errno.ENOSPC)
    try:
        disk.write(offset, guest.memory.read(address, size))
    except MemvmError as error:
        raise _failed(guest, error) from error
    return size


@hypercall(OWN_CALLS + 0x13, "memvm_disk_flush", Int("disk"))
def disk_flush(guest: Guest, call: Call, number: int) -> int:
    """Have all that was written outlive a crash: all of it, or none of what was written since the last flush."""
    try:
        disk_of(guest, number).flush()
    except MemvmError as error:
        raise _failed(guest, error) from error
    return 0


def disk_of(guest: Guest, number: int) -> Disk:
    """The disk of a number. Raises CallError(ENXIO)."""
    number = signed(number, 32)
    if not 0 <= number < len(guest.disks):
        raise CallError(errno.ENXIO)
    return guest.disks[number]


def _within(disk: Disk, size: int, offset: int) -> int:
    """As much of the range as is on the disk and may be moved at once. Raises CallError(EINVAL) for half sectors."""
    facts = disk.facts
    if size % facts.sector_size or offset % facts.sector_size:
        raise CallError(errno.EINVAL)
    return max(0, min(size, facts.size - offset, _TURN))


def _failed(guest: Guest, error: MemvmError) -> CallError:
    guest.tell(error.message)
    return CallError(errno.EIO)
