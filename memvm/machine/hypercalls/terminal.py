"""ioctl: what programs ask of a terminal, and a few requests that every stream answers.

The terminal is the host's: its modes and size are passed through. Its process groups are not; the guest, which has only
one, is in the foreground.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from memvm.machine.callresult import CallError
from memvm.machine.guest import GUEST_PID, Guest
from memvm.machine.hypercalls.table import Address, Call, Choice, Int, hypercall
from memvm.machine.streams import Stream

# include/uapi/asm-generic/ioctls.h, with the sizes of what they read and write (termios, termios2, winsize, int)
_READS = {"TCGETS": (0x5401, 36), "TCGETS2": (0x802C542A, 44), "TIOCGWINSZ": (0x5413, 8), "FIONREAD": (0x541B, 4)}
_WRITES = {
    "TCSETS": (0x5402, 36),
    "TCSETSW": (0x5403, 36),
    "TCSETSF": (0x5404, 36),
    "TCSETS2": (0x402C542B, 44),
    "TCSETSW2": (0x402C542C, 44),
    "TCSETSF2": (0x402C542D, 44),
    "TIOCSWINSZ": (0x5414, 8),
}
_VALUES = {"TCSBRK": 0x5409, "TCXONC": 0x540A, "TCFLSH": 0x540B}
_TIOCGPGRP, _TIOCSPGRP, _TIOCGSID = 0x540F, 0x5410, 0x5429
_FIONREAD = _READS["FIONREAD"][0]
_FIONBIO, _FIONCLEX, _FIOCLEX = 0x5421, 0x5450, 0x5451
_READ_SIZES, _WRITE_SIZES = dict(_READS.values()), dict(_WRITES.values())
_INT = struct.Struct("=i")

_REQUEST = Choice(
    "request",
    **{name: number for name, (number, _) in (_READS | _WRITES).items()},
    **_VALUES,
    TIOCGPGRP=_TIOCGPGRP,
    TIOCSPGRP=_TIOCSPGRP,
    TIOCGSID=_TIOCGSID,
    FIONBIO=_FIONBIO,
    FIONCLEX=_FIONCLEX,
    FIOCLEX=_FIOCLEX,
)


@hypercall(16, "ioctl", Int("fd"), _REQUEST, Address("arg"))
def ioctl(guest: Guest, call: Call, fd: int, request: int, argument: int) -> int:
    """Anything that is not here is ENOTTY."""
    file = guest.files.get(fd)
    request &= 0xFFFFFFFF
    if request in (_FIONCLEX, _FIOCLEX):
        file.close_on_exec = request == _FIOCLEX
        return 0
    if request == _FIONBIO:
        file.stream.nonblocking = guest.memory.unpack(_INT, argument)[0] != 0
        return 0
    stream = file.stream
    if request == _FIONREAD and (waiting := stream.waiting()) is not None:
        guest.memory.pack(_INT, argument, waiting)
        return 0
    if stream.is_file and request == _FIONREAD:
        left = max(0, stream.facts().size - stream.seek(0, os.SEEK_CUR))
        guest.memory.pack(_INT, argument, min(left, 0x7FFFFFFF))
        return 0
    if not isinstance(stream, Stream):
        raise CallError(errno.ENOTTY)
    try:
        return _ask_host(guest, stream.host_fd, request, argument)
    except OSError as error:
        raise CallError(error.errno or errno.EIO) from error


def _ask_host(guest: Guest, host: int, request: int, argument: int) -> int:
    if request in _READ_SIZES:
        answer = fcntl.ioctl(host, request, bytes(_READ_SIZES[request]))
        guest.memory.write(argument, answer)
    elif request in _WRITE_SIZES:
        fcntl.ioctl(host, request, guest.memory.read(argument, _WRITE_SIZES[request]))
    elif request in _VALUES.values():
        fcntl.ioctl(host, request, argument & 0x7FFFFFFF)
    elif request in (_TIOCGPGRP, _TIOCGSID):
        fcntl.ioctl(host, _READS["TCGETS"][0], bytes(36))  # ENOTTY, if it is none
        guest.memory.pack(_INT, argument, GUEST_PID)
    elif request == _TIOCSPGRP:
        fcntl.ioctl(host, _READS["TCGETS"][0], bytes(36))
        if guest.memory.unpack(_INT, argument)[0] != GUEST_PID:
            raise CallError(errno.EPERM)
    else:
        raise CallError(errno.ENOTTY)
    return 0
